package dockerfile

import (
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

func (st *step) stopSignal(c *instructions.StopSignalCommand) error {
	if !validSignal(c.Signal) {
		return didYouMean(invalidf("invalid signal: %s", c.Signal), strings.ToUpper(c.Signal), signalNames)
	}
	st.cfg.Config.StopSignal = c.Signal
	st.commit(false, "STOPSIGNAL %s", c.Signal)
	return nil
}

// Source: signal(7) of Linux.
var signalNames = strings.Fields(`SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL SIGPIPE
	SIGPOLL SIGPROF SIGPWR SIGQUIT SIGSEGV SIGSTKFLT SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGUNUSED SIGURG SIGUSR1 SIGUSR2
	SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ SIGRTMIN SIGRTMAX`)

func validSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n > 0 && n < 65
	}
	s = "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for _, n := range signalNames {
		if s == n {
			return true
		}
	}
	for _, rt := range []string{"SIGRTMIN+", "SIGRTMAX-"} {
		if v, ok := strings.CutPrefix(s, rt); ok {
			n, err := strconv.Atoi(v)
			return err == nil && n > 0 && n <= 15
		}
	}
	return false
}
