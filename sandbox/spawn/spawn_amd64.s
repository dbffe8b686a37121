#include "textflag.h"

// Offsets of type op and of type state; see spawn.go.
#define op_size_log2 7
#define op_ok 56
#define op_err0 64
#define op_err1 80
#define op_err2 96
#define op_any 112
#define state_all 0
#define state_old 8
#define state_ops 16
#define state_failed 24
#define state_errno 32

// func vfork(args *cloneArgs, s *state) int64
//
// All signals are blocked from here to the end, so that no handler runs on the stack that the two share. The child uses
// registers only, and never returns.
TEXT ·vfork(SB), NOSPLIT, $0-24
	MOVQ	args+0(FP), R12
	MOVQ	s+8(FP), R13
	MOVQ	$14, AX	// rt_sigprocmask(SIG_SETMASK, &all, &old, 8)
	MOVQ	$2, DI
	LEAQ	state_all(R13), SI
	LEAQ	state_old(R13), DX
	MOVQ	$8, R10
	SYSCALL
	MOVQ	$435, AX	// clone3(args, 88)
	MOVQ	R12, DI
	MOVQ	$88, SI
	SYSCALL
	CMPQ	AX, $0
	JEQ	child
	MOVQ	AX, BX
	MOVQ	$14, AX	// rt_sigprocmask(SIG_SETMASK, &old, NULL, 8)
	MOVQ	$2, DI
	LEAQ	state_old(R13), SI
	XORL	DX, DX
	MOVQ	$8, R10
	SYSCALL
	MOVQ	BX, ret+16(FP)
	RET
child:
	MOVQ	state_ops(R13), R12
	XORL	BX, BX	// the number of the call
next:
	MOVQ	0(R12), AX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCC	error
	MOVQ	op_ok(R12), DX
	JMP	forward
error:
	NEGQ	AX
	MOVQ	(op_err0+8)(R12), DX
	CMPQ	AX, op_err0(R12)
	JEQ	forward
	MOVQ	(op_err1+8)(R12), DX
	CMPQ	AX, op_err1(R12)
	JEQ	forward
	MOVQ	(op_err2+8)(R12), DX
	CMPQ	AX, op_err2(R12)
	JEQ	forward
	MOVQ	op_any(R12), DX
	CMPQ	DX, $0
	JNE	forward
	MOVQ	BX, state_failed(R13)
	MOVQ	AX, state_errno(R13)
exit:
	MOVQ	$231, AX	// exit_group(127)
	MOVQ	$127, DI
	SYSCALL
	JMP	exit
forward:
	ADDQ	DX, BX
	SHLQ	$op_size_log2, DX
	ADDQ	DX, R12
	JMP	next
