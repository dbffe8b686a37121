// Package progress shows a build's events to the person who waits for it.
//
// A [Display] takes events from any goroutine and hands them, in order, to a renderer that runs in one: the terminal's
// ([TTY]), which redraws a few live lines below what has been settled; the plain one ([Plain]), which prints whole
// lines, prefixed with the step's number; or [RawJSON], an event per line. What a renderer knows about steps is kept in
// a board, which is fed by events and by nothing else.
//
//	d := progress.New(progress.Options{Mode: progress.Auto, Out: os.Stderr})
//	resp, err := eng.Build(ctx, req, sess, d.Sink())
//	d.Close(err)
//
// Vocabulary: a step is a vertex or a group of vertices that is shown as one; an item is a transfer of a step; a line of
// the terminal is settled when it will not be drawn again.
package progress
