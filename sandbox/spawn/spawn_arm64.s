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
	MOVD	args+0(FP), R9
	MOVD	s+8(FP), R10
	MOVD	$135, R8	// rt_sigprocmask(SIG_SETMASK, &all, &old, 8)
	MOVD	$2, R0
	ADD	$state_all, R10, R1
	ADD	$state_old, R10, R2
	MOVD	$8, R3
	SVC
	MOVD	$435, R8	// clone3(args, 88)
	MOVD	R9, R0
	MOVD	$88, R1
	SVC
	CBZ	R0, child
	MOVD	R0, R11
	MOVD	$135, R8	// rt_sigprocmask(SIG_SETMASK, &old, NULL, 8)
	MOVD	$2, R0
	ADD	$state_old, R10, R1
	MOVD	$0, R2
	MOVD	$8, R3
	SVC
	MOVD	R11, ret+16(FP)
	RET
child:
	MOVD	state_ops(R10), R9
	MOVD	$0, R11	// the number of the call
next:
	MOVD	0(R9), R8
	MOVD	8(R9), R0
	MOVD	16(R9), R1
	MOVD	24(R9), R2
	MOVD	32(R9), R3
	MOVD	40(R9), R4
	MOVD	48(R9), R5
	SVC
	CMN	$4095, R0
	BCS	error
	MOVD	op_ok(R9), R12
	B	forward
error:
	NEG	R0, R0
	MOVD	op_err0(R9), R13
	MOVD	(op_err0+8)(R9), R12
	CMP	R13, R0
	BEQ	forward
	MOVD	op_err1(R9), R13
	MOVD	(op_err1+8)(R9), R12
	CMP	R13, R0
	BEQ	forward
	MOVD	op_err2(R9), R13
	MOVD	(op_err2+8)(R9), R12
	CMP	R13, R0
	BEQ	forward
	MOVD	op_any(R9), R12
	CBNZ	R12, forward
	MOVD	R11, state_failed(R10)
	MOVD	R0, state_errno(R10)
exit:
	MOVD	$94, R8	// exit_group(127)
	MOVD	$127, R0
	SVC
	B	exit
forward:
	ADD	R12, R11, R11
	LSL	$op_size_log2, R12, R12
	ADD	R12, R9, R9
	B	next
