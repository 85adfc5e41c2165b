# An image with migratefs and what a mount needs, and nothing else.
#
# A mount that other containers or the host shall see needs /dev/fuse, the right
# to mount, and a directory that is shared with them:
#
#   podman run --rm --device /dev/fuse --cap-add SYS_ADMIN \
#     --mount type=bind,src=/mnt/data,dst=/data,bind-propagation=rshared \
#     migratefs -f -o lowerdir=user@host:/data /data
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends fuse3 openssh-client \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/build/migratefs /usr/bin/migratefs
RUN ln -s migratefs /usr/bin/lazyfs \
 && ln -s /usr/bin/migratefs /usr/sbin/mount.fuse.migratefs \
 && ln -s /usr/bin/migratefs /usr/sbin/umount.fuse.migratefs
COPY LICENSE /usr/share/doc/migratefs/LICENSE
ENTRYPOINT ["/usr/bin/migratefs"]
CMD ["--help"]
