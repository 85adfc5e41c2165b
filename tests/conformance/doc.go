// Package conformance runs one list of cases on every kind of mount, and on a
// bare ext4, which says what is right.
//
// A case notes what it sees, line by line; on a mount it must see the same as on
// ext4. Where it does not, and shall not, the table of deviations says what it
// sees instead, and why: a deviation that is gone fails the test as well.
package conformance
