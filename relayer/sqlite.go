package relayer

import (
	"bytes"
	"encoding/binary"

	"github.com/strata-build/strata/diag"
)

// sqliteRows calls f with the columns of each row of a table, from the bytes of a database file: what rpm needs of SQLite,
// which is not linked for it. A write-ahead log beside the file is not read: rpm empties it when it closes the database.
// Source: sqlite.org/fileformat2.html, "Database Pages" to "Record Format".
func sqliteRows(data []byte, table string, f func(row [][]byte) error) error {
	if len(data) < 100 || !bytes.HasPrefix(data, []byte("SQLite format 3\x00")) {
		return diag.Errorf(diag.Invalid, "not a database of SQLite")
	}
	db := sqlite{data: data, page: int(binary.BigEndian.Uint16(data[16:])), seen: map[int]bool{}, left: 2 * int64(len(data))}
	if db.page == 1 {
		db.page = 65536
	}
	if db.page < 512 {
		return errSQLite
	}
	db.usable = db.page - int(data[20])
	root := 0
	err := db.table(1, func(row [][]byte) error { // type, name, tbl_name, rootpage, sql
		if len(row) >= 4 && string(row[0]) == "table" && string(row[1]) == table {
			for _, b := range row[3] {
				root = root<<8 | int(b)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if root == 0 {
		return diag.Errorf(diag.Invalid, "the database has no table %s", table)
	}
	return db.table(root, f)
}

var errSQLite = diag.Errorf(diag.Invalid, "the database is damaged")

type sqlite struct {
	data         []byte
	page, usable int
	left         int64        // bytes of rows that may still come: rows cannot overlap
	seen         map[int]bool // pages of trees: one that is there twice would be walked without end
}

func (db *sqlite) at(n int) ([]byte, error) {
	if n < 1 || n > len(db.data)/db.page {
		return nil, errSQLite
	}
	return db.data[(n-1)*db.page : n*db.page], nil
}

// table walks a table's b-tree.
func (db *sqlite) table(n int, f func([][]byte) error) error {
	p, err := db.at(n)
	if err != nil || db.seen[n] {
		return errSQLite
	}
	db.seen[n] = true
	head := 0
	if n == 1 {
		head = 100
	}
	cells := int(binary.BigEndian.Uint16(p[head+3:]))
	interior := p[head] == 5
	if !interior && p[head] != 13 {
		return errSQLite
	}
	index := head + 8
	if interior {
		index = head + 12
	}
	if index+2*cells > len(p) {
		return errSQLite
	}
	for i := range cells {
		off := int(binary.BigEndian.Uint16(p[index+2*i:]))
		if off+4 > len(p) {
			return errSQLite
		}
		if interior {
			err = db.table(int(binary.BigEndian.Uint32(p[off:])), f)
		} else {
			err = db.row(p[off:], f)
		}
		if err != nil {
			return err
		}
	}
	if interior {
		return db.table(int(binary.BigEndian.Uint32(p[head+8:])), f)
	}
	return nil
}

// row reads a leaf's cell: the payload's size, the row id, and the payload, of which a part may be on overflow pages.
func (db *sqlite) row(cell []byte, f func([][]byte) error) error {
	size, n := varint(cell)
	_, m := varint(cell[n:])
	if n == 0 || m == 0 || size < 0 || size > int64(len(db.data)) {
		return errSQLite
	}
	if db.left -= size; db.left < 0 {
		return errSQLite
	}
	cell = cell[n+m:]
	local := int(size)
	if most := db.usable - 35; local > most {
		least := (db.usable-12)*32/255 - 23
		if local = least + (int(size)-least)%(db.usable-4); local > most {
			local = least
		}
	}
	if local > len(cell) {
		return errSQLite
	}
	payload := bytes.Clone(cell[:local])
	if local < int(size) {
		if local+4 > len(cell) {
			return errSQLite
		}
		next := int(binary.BigEndian.Uint32(cell[local:]))
		for len(payload) < int(size) {
			p, err := db.at(next)
			if err != nil {
				return err
			}
			next = int(binary.BigEndian.Uint32(p))
			payload = append(payload, p[4:4+min(db.usable-4, int(size)-len(payload))]...)
		}
	}
	row, err := record(payload)
	if err != nil {
		return err
	}
	return f(row)
}

// record cuts a payload into its columns; numbers stay big endian.
func record(b []byte) ([][]byte, error) {
	head, n := varint(b)
	if n == 0 || head < int64(n) || head > int64(len(b)) {
		return nil, errSQLite
	}
	types, body := b[n:head], b[head:]
	var row [][]byte
	for len(types) > 0 {
		t, n := varint(types)
		if n == 0 {
			return nil, errSQLite
		}
		types = types[n:]
		size := int64(0)
		switch {
		case t >= 12:
			size = (t - 12) / 2
		case t >= 1 && t <= 4:
			size = t
		case t == 5:
			size = 6
		case t == 6 || t == 7:
			size = 8
		}
		if size < 0 || size > int64(len(body)) {
			return nil, errSQLite
		}
		row = append(row, body[:size])
		body = body[size:]
	}
	if len(row) == 0 {
		return nil, errSQLite
	}
	return row, nil
}

// varint reads SQLite's big endian numbers of one to nine bytes; n is 0 if b ends too early.
func varint(b []byte) (v int64, n int) {
	for i := range min(len(b), 9) {
		if i == 8 {
			return v<<8 | int64(b[i]), 9
		}
		v = v<<7 | int64(b[i]&0x7f)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
