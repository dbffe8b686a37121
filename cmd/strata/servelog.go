package main

import (
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
)

// logConfig is the section [log]: what the daemon logs, and how.
type logConfig struct {
	Format string `toml:"format"`
	Level  string `toml:"level"`
}

// Levels that BuildKit's logs have and slog has not.
const (
	levelTrace = slog.LevelDebug - 4
	levelFatal = slog.LevelError + 4
)

// logLevels are the names of BuildKit's levels.
func logLevels() map[string]slog.Level {
	return map[string]slog.Level{
		"trace": levelTrace, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "warn": slog.LevelWarn,
		"error": slog.LevelError, "fatal": levelFatal, "panic": levelFatal,
	}
}

// logging chooses what the daemon logs: --log-level or BUILDKITD_LOG_LEVEL, then --debug, then the file.
func (v *serving) logging(debug bool, c *serveConfig) logConfig {
	out := logConfig{Format: firstOf(v.log.Format, c.Log.Format), Level: firstOf(v.log.Level, os.Getenv("BUILDKITD_LOG_LEVEL"))}
	switch {
	case out.Level != "":
	case v.trace:
		out.Level = "trace"
	case debug:
		out.Level = "debug"
	case c.Log.Level != "":
		out.Level = c.Log.Level
	case c.Trace:
		out.Level = "trace"
	case c.Debug:
		out.Level = "debug"
	}
	return out
}

// logger makes the daemon's log.
func (c logConfig) logger(w io.Writer) (*slog.Logger, error) {
	level, ok := logLevels()[firstOf(strings.ToLower(c.Level), "info")]
	if !ok {
		e := diag.Errorf(diag.Invalid, "unsupported log level %q", c.Level)
		return nil, e.WithHint("it must be trace, debug, info, warn, error, fatal or panic")
	}
	opt := &slog.HandlerOptions{Level: level}
	switch w = diag.RedactWriter(w); c.Format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opt)), nil
	case "json":
		opt.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if l, ok := a.Value.Any().(slog.Level); ok && len(groups) == 0 && a.Key == slog.LevelKey {
				a.Value = slog.StringValue(levelName(l))
			}
			return a
		}
		return slog.New(slog.NewJSONHandler(w, opt)), nil
	}
	return nil, diag.Errorf(diag.Invalid, "unsupported log format %q", c.Format).WithHint("it must be text or json")
}

// levelName is a level as BuildKit's JSON has it.
func levelName(l slog.Level) string {
	if l == slog.LevelWarn {
		return "warning"
	}
	return strings.ToLower(l.String())
}

// stepLogLimits reads BuildKit's variables. Without them nothing is clipped; with one of them the other has BuildKit's default.
func stepLogLimits() *buildkit.LogLimits {
	size, errSize := strconv.ParseInt(os.Getenv("BUILDKIT_STEP_LOG_MAX_SIZE"), 10, 32)
	speed, errSpeed := strconv.ParseInt(os.Getenv("BUILDKIT_STEP_LOG_MAX_SPEED"), 10, 32)
	switch {
	case errSize != nil && errSpeed != nil:
		return nil
	case errSize != nil:
		size = 2 << 20
	case errSpeed != nil:
		speed = 200 << 10
	}
	return &buildkit.LogLimits{Size: size, Speed: speed}
}
