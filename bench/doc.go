// Command bench times Strata and the builders that the machine has on the same workloads, and writes a table of the
// results in Markdown. It judges nothing: it prints medians, ranges, ratios and the goals.
//
// Everything happens on a journaled ext4 file system in a loop device that bench makes, for creating files on a file
// system without a journal says nothing about builders. Each builder has its own state there, empty at the start of
// every workload, and is started and stopped by bench. In each round every builder runs the workload once, in turn, so
// that what disturbs the machine disturbs all of them. All steps run in the host's network. It needs root.
//
// Vocabulary: a builder is a program under test; a workload is a scenario, such as W3; a row is one thing that a workload
// measures, such as "W3 cold"; a round is one run of the workloads by all builders.
//
//	go run ./bench -strata bin/strata -only W1,W2 -peers buildctl,docker -rounds 3 -table docs/benchmarks.md
package main
