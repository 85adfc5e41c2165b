package oracle

// Metacopy files: what one leaves without data, the other reads, moves, links and
// completes.
func init() {
	interops = append(interops,
		interop{
			name:   "metadata alone",
			layers: []string{"", "mkdir d\nfile f 3000\nfile d/g 90000\nfile d/h 12000\nwrite empty \"\"\nfile d/i 100"},
			turns: []string{
				"chmod f\nchmod d/g\nchmod empty\nxattr d/h\nacl d/i",
				"mv f d/f\nln d/g d/g2\nchmod d/h\nmv d/i i",
				"append d/f more\nappend d/g2 more\ncut d/h 5000\nacl i",
				"mv d e\nappend e/h more\nxattr i\nwrite i new",
			},
		},
		interop{
			name:   "a metacopy moves on and on",
			layers: []string{"mkdir a/b\nfile a/b/x 5000", "mkdir a/b\nfile a/b/f 70000\nfile a/b/g 70000\nfile h 5000\nmkdir c"},
			turns: []string{
				"mv a/b/f f\nmv a/b/x a/b/f\nmv a n\nchmod h",
				"mv f n/b/f2\nmv n/b/g c/g\nexchange h c/g",
				"mv n/b c/b\nln c/b/f2 f3\nchmod c/b/f\nmv h c/b/h2",
				"append f3 more\nappend c/b/f more\nexchange c/b/h2 c/g\nappend c/g more",
				"append c/b/h2 more\nrm f3",
			},
		},
		interop{
			name: "a lower with metacopies",
			layers: []string{
				"",
				"mkdir d\nmetacopy d/f 9000\nmetacopy g 8000 /p/q\nmetacopy d/i 7000 j\nmetacopy d/k 100",
				"mkdir d\nmetacopy d/f 9000 /d/low\nmkdir p\nmkdir r\nmetacopy p/q 8000 /r/s\nmetacopy d/j 7000",
				"mkdir d\nfile d/low 9000\nmkdir r\nfile r/s 8000\nfile d/j 7000\nfile d/k 100",
			},
			turns: []string{
				"chmod d/f\nappend g more",
				"mv d/f f\nchmod d/i\nmv d/k k",
				"ln d/i i2\nappend f more\nappend k more",
				"cut i2 100",
			},
		},
		interop{
			name:   "hard links without data",
			layers: []string{"mkdir a\nmkdir b\nfile a/f 50000\nln a/f b/g\nln a/f h\nfile a/s 4000\nln a/s s2"},
			turns: []string{
				"chmod a/f\nchmod a/s",
				"chmod b/g\nmv h b/h\nln a/f a/f2\nmv s2 s3",
				"append b/h more\nrm a/s",
				"append a/f2 more\nappend s3 more",
			},
		},
		interop{
			name:   "writes through hard links without data that were moved",
			layers: []string{"mkdir a\nmkdir b\nmkdir c\nfile a/f 50000\nln a/f b/g\nln a/f h\nfile c/s 9000\nln c/s c/t\nfile c/u 7000\nfile c/x 8000\nln c/x b/x"},
			turns: []string{
				"chmod a/f\nmv a/f a/f2\nmv h b/h\nchmod c/s\nmv c/s c/s2\nln c/u c/v\nmv b/x y",
				"append b/g more\nchmod c/t\nmv c/u u",
				"mv c/t b/t\nmv c/v c/w\nappend b/t more\ncut c/x 4000",
				"append c/s2 again\nappend c/w more\nappend b/h again\nrm a/f2\nappend y more",
				"append u again\nappend b/g again",
			},
		},
		// Neither writes such a redirect: one that is a name is made a path before the
		// file has a second name. Names below lead by the index to the copy, whose data
		// is what they themselves stand for.
		interop{
			name:   "hard links without data whose redirect is a name",
			layers: []string{"mkdir a\nmkdir b\nfile a/f 50000\nln a/f b/g\nln a/f h\nfile a/s 4000\nln a/s b/s2"},
			turns: []string{
				"chmod a/f\nchmod a/s\nredirect ../upper/a/f f\nredirect ../upper/a/s s",
				"append b/g more\nappend b/s2 more",
				"mv b/g c\nappend h more",
			},
		},
		interop{
			name:   "cut to nothing",
			layers: []string{"file f 50000\nfile g 50000\nfile h 100"},
			turns: []string{
				"chmod f\nchmod g\nmv g g2\nchmod h",
				"cut f 0\nwrite g2 short\ncut h 50",
				"append f new\nappend g2 new\nchmod h",
			},
		},
		interop{
			name:   "a path too long for a redirect",
			layers: []string{"mkdir " + longDir + "\nfile " + longDir + "f 20000"},
			turns: []string{
				"chmod " + longDir + "f",
				"chmod " + longDir + "f",
			},
		},
	)
}

var longDir = func() string {
	d := ""
	for range 4 {
		for range 79 {
			d += "d"
		}
		d += "/"
	}
	return d
}()
