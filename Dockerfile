# An image with migratefs and what a mount needs, and nothing else:
#
#   docker build -t migratefs .
#
# Which privileges a mount needs that others shall see, and lines to run it with, are
# in docs/container-image.md.
ARG BASE=debian:bookworm-slim

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
ARG COMMIT=unknown
ARG DATE=
RUN make completions VERSION=$VERSION COMMIT=$COMMIT DATE=$DATE \
 && make install DESTDIR=/out \
 && rm -r /out/usr/lib \
 && find /out/usr/share -mindepth 1 -maxdepth 1 ! -name licenses -exec rm -r {} +

FROM $BASE
RUN apt-get update \
 && apt-get install -y --no-install-recommends fuse3 openssh-client \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /out /
ENTRYPOINT ["/usr/bin/migratefs"]
CMD ["--help"]
