package dockerfile

import (
	"runtime"

	"github.com/strata-build/strata/graph"
)

// shortPlatform leaves the version of the system out.
func shortPlatform(p graph.Platform) string {
	p.OSVersion = ""
	return graph.FormatPlatform(p)
}

func hostPlatform() graph.Platform {
	return graph.NormalizePlatform(graph.Platform{OS: "linux", Architecture: runtime.GOARCH})
}
