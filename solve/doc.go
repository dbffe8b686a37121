// Package solve turns a graph into results. It decides what must run, runs equal work once, and knows no op: how a
// vertex is pinned and run is a [Runner]'s business, what is kept between builds a [Cache]'s.
//
// Vocabulary. A vertex has one cache key: the hash of its [Preimage], which holds the op, the pin (the digest that a
// tag stood for), and a token for each input. The token is the input's own key, or, where the op reads only certain
// files of the input, the digest of those files; so a change that reaches no file that is used changes no key above
// it (early cut-off). A memo remembers the digest for an input's key, so that the input need not be there to compute
// keys above it. A flight is one run under way; every build that needs the same key waits for the same flight.
//
//	s := solve.New[tree.Tree, *env](runner, cache, solve.Options{Parallel: 4})
//	b := s.Build(ctx, env, solve.BuildOptions{Sink: sink})
//	defer b.Close()
//	trees, err := b.Solve(plan.Targets[0].Root)
package solve
