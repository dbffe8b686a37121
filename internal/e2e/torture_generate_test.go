package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
)

// generator makes projects and edits of them; equal seeds make equal ones.
type generator struct {
	*rand.Rand
	ids int
}

func newGenerator(seed uint64) *generator { return &generator{Rand: rand.New(rand.NewPCG(seed, 0))} }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) one(in int) bool { return g.IntN(in) == 0 }

// The names of a context, and of the files of stages. There are few, so that steps meet each other's files.
var (
	contextDirs  = []string{"d", "d/s", "e"}
	contextFiles = []string{"d/f", "d/g", "d/s/f", "d/s/h", "e/f", "e/g", "top"}
)

func (g *generator) path() string {
	return pick(g, "/w", "/w/x", "/w/y", "/w/x/d") + "/" + pick(g, "f", "g", "r", "h", "l", "a")
}

func (g *generator) mode() string { return pick(g, "600", "644", "755", "4755", "1777", "640") }

func (g *generator) owner() string { return pick(g, "0:0", "1:2", "3", "1000:0") }

// project makes a project of two or three stages.
func (g *generator) project() *project {
	p := &project{nodes: map[string]node{}, arg: pick(g, "1", "2")}
	for _, d := range contextDirs {
		p.nodes[d] = node{dir: true, mode: 0o755, mtime: 1_500_000_000}
	}
	for _, f := range contextFiles {
		p.nodes[f] = g.file()
	}
	p.nodes["a.tar"] = node{archive: 1 + g.IntN(archives), mode: 0o644, mtime: 1_500_000_000}
	stages := 2 + g.IntN(2)
	for n := range stages {
		g.add(p, len(p.steps), fmt.Sprintf("FROM base AS s%d", n))
		g.add(p, len(p.steps), g.first())
		for range 2 + g.IntN(3) {
			g.add(p, len(p.steps), g.instruction(n))
		}
	}
	g.add(p, len(p.steps), "RUN "+look("/w /v", "/last"))
	return p
}

func (g *generator) add(p *project, at int, text string) {
	g.ids++
	p.steps = slices.Insert(p.steps, at, step{g.ids, text})
}

func (g *generator) file() node {
	return node{
		text: pick(g, "1", "2", "3", "10", "big"), mode: pick[uint32](g, 0o644, 0o755, 0o600, 0o2755),
		uid: pick(g, 0, 0, 5), gid: pick(g, 0, 0, 6), mtime: 1_500_000_000 + int64(g.IntN(3)),
	}
}

// first begins a stage with the directories that other instructions name.
func (g *generator) first() string {
	return fmt.Sprintf("RUN mkdir -p /w/x/d /w/y; echo %d >/w/x/r; echo %d >/w/y/r; echo 1 >/w/x/d/f", g.IntN(2), g.IntN(2))
}

// look is a command that writes down what a step can see of directories, times and directories' sizes left out.
func look(dirs, to string) string {
	return fmt.Sprintf(`for i in $(find %s 2>/dev/null | sort); do if test -d $i -a ! -L $i; then stat -c "%%n %%a %%u:%%g" $i; `+
		`else stat -c "%%n %%F %%a %%u:%%g %%h %%s" $i; test -L $i && readlink $i || sha256sum <$i; fi; done >%s 2>&1; true`, dirs, to)
}

// instruction makes an instruction for the stage of a number.
func (g *generator) instruction(stage int) string {
	switch g.IntN(10) {
	case 0, 1, 2, 3:
		return g.copy(stage)
	case 4:
		return g.addFile()
	case 5:
		return pick(g, "WORKDIR /w/x", "WORKDIR /v/u", "WORKDIR y", fmt.Sprintf("ENV E=%d", g.IntN(3)), "ARG A", fmt.Sprintf("ARG A=%d", g.IntN(3)))
	case 6:
		return g.mounts(stage)
	}
	return "RUN " + g.shell()
}

func (g *generator) flags(links bool) string {
	var out string
	if g.one(3) {
		out += " --chmod=" + g.mode()
	}
	if g.one(3) {
		out += " --chown=" + g.owner()
	}
	if links && g.one(4) {
		out += " --link"
	}
	return out
}

func (g *generator) copy(stage int) string {
	flags := g.flags(true)
	var from []string
	if stage > 0 && g.one(2) {
		flags += fmt.Sprintf(" --from=s%d", g.IntN(stage))
		from = []string{"/w/x", "/w/x/r", "/w/y/r", "/w/y", "/w/x/*", "/w/*/r", "/w/x/d/f", "/w/./x/r", "/w"}
	} else {
		from = []string{"d", "d/f", "d/g", "e/f", "e/g", "d/*", "d/s", "d/s/f", "top", "*/f", "e", "d/./s/f", ".", "a.tar"}
	}
	if g.one(5) {
		flags += " --parents"
	}
	if g.one(5) {
		flags += " --exclude=" + pick(g, "f", "**/f", "*/r", "s", "d/g")
	}
	sources := []string{pick(g, from...)}
	for g.one(3) {
		sources = append(sources, pick(g, from...))
	}
	if g.one(4) { // the last one wins
		sources = []string{"d/f", "e/f"}
		if from[0] == "/w/x" {
			sources = []string{"/w/x/r", "/w/y/r"}
		}
	}
	to := pick(g, "/w/", "/w/x/", "/w/y/", "/w/x/d/", "/w/new/", "./")
	if len(sources) == 1 && g.one(4) {
		to = pick(g, "/w/x/f", "/w/n", "/w/y/g")
	}
	return fmt.Sprintf("COPY%s %s %s", flags, strings.Join(sources, " "), to)
}

func (g *generator) addFile() string {
	return fmt.Sprintf("ADD%s %s %s", g.flags(true), pick(g, "a.tar", "a.tar", "d/f", "e"), pick(g, "/w/", "/w/x/", "/w/y/"))
}

// mounts makes a RUN with mounts. What it writes depends on what is part of the step's key alone.
func (g *generator) mounts(stage int) string {
	if stage > 0 && g.one(2) {
		from := g.IntN(stage)
		return pick(g,
			fmt.Sprintf("RUN --mount=from=s%d,source=/w/x,target=/m --mount=from=s%d,source=/w/y,target=/n %s", from, from, look("/m /n", "/w/m")),
			fmt.Sprintf("RUN --mount=from=s%d,source=/w/y,target=/m --mount=from=s%d,source=/w/x,target=/n %s", from, from, look("/m /n", "/w/m")),
			fmt.Sprintf("RUN --mount=from=s%d,target=/m,rw echo 1 >/m/w/x/r; %s", from, look("/m/w", "/w/m")),
			fmt.Sprintf("RUN --mount=type=cache,id=c%d,from=s%d,source=/w/x,target=/m %s", from, from, look("/m", "/w/m")),
		)
	}
	own := fmt.Sprint(g.IntN(4))
	return pick(g,
		"RUN --mount=source=d,target=/m --mount=source=e,target=/n "+look("/m /n", "/w/m"),
		"RUN --mount=source=e,target=/m --mount=source=d,target=/n "+look("/m /n", "/w/m"),
		"RUN --mount=target=/m --mount=source=d/s,target=/n "+look("/m/e /n", "/w/m"),
		"RUN --mount=target=/m --mount=source=e,target=/n "+look("/m/e /n", "/w/m"),
		"RUN --mount=source=d/f,target=/m --mount=source=e/f,target=/n "+look("/m /n", "/w/m"),
		"RUN --mount=type=cache,target=/c"+pick(g, "", ",sharing=locked", ",uid=5", ",mode=700")+" echo "+own+" >/c/"+own+"; cp /c/"+own+" "+g.path()+"; true",
		"RUN --mount=type=secret,id=s,target=/secret"+pick(g, "", ",mode=444", ",uid=5")+" stat -c '%a %u:%g' /secret >/w/s; cat /secret >>/w/s",
		"RUN --mount=type=tmpfs,target=/w/x echo 1 >/w/x/lost; "+look("/w", "/w/m"),
	)
}

// shell makes one to three commands that change the file system.
func (g *generator) shell() string {
	var out []string
	for range 1 + g.IntN(3) {
		a, b := g.path(), g.path()
		out = append(out, pick(g,
			"echo "+fmt.Sprint(g.IntN(3))+" >"+a,
			"echo $A-$E >"+a,
			"echo 1 >>"+a,
			"true >>"+a,
			"chmod "+g.mode()+" "+a,
			"chmod -R u+x,o-r "+pick(g, "/w/x", "/w/y"),
			"chown -h "+g.owner()+" "+a,
			"chown -R "+g.owner()+" "+pick(g, "/w/x", "/w/y", "/w"),
			"mv "+a+" "+b,
			"mv /w/x /w/z; mkdir /w/x; mv /w/z/* /w/x/",
			"ln -f "+a+" "+b,
			"ln -sf "+pick(g, "f", "../y/r", "/w/x/r", "nowhere")+" "+a,
			"rm -rf "+a,
			"rm -rf /w/y; mkdir /w/y",
			"mkdir -p "+a,
			"cp -a "+a+" "+b,
			"touch -d @1400000000 "+a,
			look("/w", "/w/"+pick(g, "look", "x/look")),
		))
	}
	return "{ " + strings.Join(out, "; ") + "; } 2>/dev/null; true"
}

// edit makes the next version of a project.
func (g *generator) edit(p *project) *project {
	q := p.clone()
	for range 1 + g.IntN(2) {
		if g.one(2) {
			g.editContext(q)
		} else {
			g.editSteps(q)
		}
	}
	if g.one(4) {
		g.reorder(q)
	}
	return q
}

func (g *generator) editContext(p *project) {
	name, other := pick(g, contextFiles...), pick(g, contextFiles...)
	n := p.nodes[name]
	switch g.IntN(16) {
	case 0, 1: // also of the same size and time
		n.text = pick(g, "1", "2", "3", "4")
	case 2:
		n.mode = pick[uint32](g, 0o644, 0o755, 0o600, 0o4755)
	case 3:
		n.uid, n.gid = g.IntN(3), g.IntN(3)
	case 4:
		n.mtime++
	case 5, 12:
		n.cap = pick[byte](g, 0, 10, 13)
	case 6, 13:
		n.user = pick(g, "", "a", "b")
	case 7: // two change places
		p.nodes[name], p.nodes[other] = p.nodes[other], n
		return
	case 8, 14: // alike, or one file
		if name == other {
			return
		}
		if n.hard == "" {
			n = p.nodes[other]
			n.hard = pick(g, "", other)
		} else {
			n = p.nodes[n.hard]
			n.hard = ""
		}
	case 9:
		n.link = pick(g, "", "f", "g", "../e/f", "nowhere")
	case 10:
		if g.one(2) {
			delete(p.nodes, name)
			return
		}
		n = g.file()
	case 11, 15:
		a := p.nodes["a.tar"]
		a.archive = 1 + (a.archive - 1) ^ (1 << g.IntN(6))
		p.nodes["a.tar"] = a
		if g.one(2) {
			d := p.nodes["d/s"]
			d.mode = pick[uint32](g, 0o755, 0o700, 0o1777)
			p.nodes["d/s"] = d
		}
		return
	}
	if n.mode == 0 { // it was not there
		n = g.file()
	}
	p.nodes[name] = n
}

func (g *generator) editSteps(p *project) {
	at := g.IntN(len(p.steps))
	stage := strings.Count(p.dockerfileUpTo(at), "FROM ") - 1
	isFrom := strings.HasPrefix(p.steps[at].text, "FROM ")
	switch g.IntN(6) {
	case 0:
		if !isFrom {
			p.steps = slices.Delete(p.steps, at, at+1)
		}
	case 1:
		if at > 0 {
			g.add(p, at+1, g.instruction(stage))
		}
	case 2:
		p.arg = pick(g, "1", "2", "3")
	case 3:
		if !isFrom && !strings.HasPrefix(p.steps[at-1].text, "FROM ") {
			p.steps[at].text, p.steps[at-1].text = p.steps[at-1].text, p.steps[at].text
		}
	case 4:
		p.steps[at].text = g.reflag(p.steps[at].text)
	default:
		if !isFrom {
			g.ids++
			p.steps[at] = step{g.ids, g.instruction(stage)}
		}
	}
}

// links exchanges hard links and copies.
var links = strings.NewReplacer("ln -f /", "cp -a /", "cp -a /", "ln -f /")

// mountSource is where a mount of a step is from.
var mountSource = regexp.MustCompile(`source=[^, ]+`)

// reorder has one step that reads two parts of an input read them in the other order, or make copies in place of hard links.
func (g *generator) reorder(p *project) {
	var turned []step
	for _, s := range p.steps {
		if s.text = turn(s.text); s.text != "" {
			turned = append(turned, s)
		}
	}
	if len(turned) == 0 {
		return
	}
	s := pick(g, turned...)
	p.steps[slices.IndexFunc(p.steps, func(o step) bool { return o.id == s.id })] = s
}

// turn returns an instruction with its sources, or the sources of its mounts, in the other order, or with copies in place of hard
// links, or the other way round; "" if it has none of them.
func turn(text string) string {
	words := strings.Fields(text)
	switch words[0] {
	case "COPY":
		if sources := words[copyFlags(words) : len(words)-1]; len(sources) > 1 {
			slices.Reverse(sources)
			return strings.Join(words, " ")
		}
	case "RUN":
		if sources := mountSource.FindAllString(text, -1); len(sources) > 1 {
			return mountSource.ReplaceAllStringFunc(text, func(string) string {
				last := sources[len(sources)-1]
				sources = sources[:len(sources)-1]
				return last
			})
		}
		if other := links.Replace(text); other != text {
			return other
		}
	}
	return ""
}

// copyFlags returns where the flags of a COPY end.
func copyFlags(words []string) int {
	first := 1
	for strings.HasPrefix(words[first], "--") {
		first++
	}
	return first
}

// reflag gives a COPY another mode and owner.
func (g *generator) reflag(text string) string {
	words := strings.Fields(text)
	if words[0] != "COPY" {
		return text
	}
	first := copyFlags(words)
	flags := slices.DeleteFunc(slices.Clone(words[1:first]), func(f string) bool { return strings.HasPrefix(f, "--ch") })
	return strings.Join(slices.Concat([]string{"COPY" + g.flags(false)}, flags, words[first:]), " ")
}

func (p *project) dockerfileUpTo(at int) string {
	var b strings.Builder
	for _, s := range p.steps[:at+1] {
		b.WriteString(s.text + "\n")
	}
	return b.String()
}

// without lists the projects that lack one line or one file of this one.
func (p *project) without() []func(*project) *project {
	var out []func(*project) *project
	for _, s := range p.steps {
		out = append(out, func(q *project) *project {
			q = q.clone()
			q.steps = slices.DeleteFunc(q.steps, func(o step) bool { return o.id == s.id })
			return q
		})
	}
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		out = append(out, func(q *project) *project {
			q = q.clone()
			maps.DeleteFunc(q.nodes, func(o string, _ node) bool { return o == name || strings.HasPrefix(o, name+"/") })
			return q
		})
	}
	return out
}
