// Package reexec runs the program again from an executable that nobody can write to.
//
// Until the first process of a build step executes the step's command, it has the engine's memory, and /proc/self/exe leads to
// the engine's executable. An image can have the kernel open that path: as the interpreter of a script ("#!/proc/self/exe"), as
// the loader of a program, or as a symbolic link. A step that has a descriptor of the engine's executable waits until nobody runs
// it and then overwrites it: the next start runs the step's code as root on the host (CVE-2019-5736 of runc).
//
// [Protect] therefore makes a detached read-only mount of the executable and executes it again from there. The new process's
// /proc/self/exe leads to that mount, which is in no mount namespace: no step can make it writable, whatever its capabilities. The
// executable is not copied, and the program keeps its process id, its open files and its arguments.
//
//	func main() {
//		if err := reexec.Protect(); err != nil { // returns only if nothing has to be done, or if it cannot be done
//			log.Print(err)
//		}
//		...
//	}
package reexec
