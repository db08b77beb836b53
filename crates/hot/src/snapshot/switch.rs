//! Saved registers: what a function must keep for its caller is on the stack, and the stack is in the memory.

/// What a thread that is made again begins with.
#[repr(C)]
pub struct Begin {
    pub stack: u64,
    pub robust: u64,
    pub rseq: u64,
    pub rseq_length: u64,
}

/// Whether this is written for the processor.
pub const IS_KNOWN: bool = cfg!(target_arch = "x86_64");

#[cfg(target_arch = "x86_64")]
extern "C-unwind" {
    /// Saves the registers on the stack and calls `f` with `argument` and the stack pointer. Returns what that returns; 1 if
    /// [`tcpr_hot_thaw`] has come here.
    pub fn tcpr_hot_freeze(f: extern "C-unwind" fn(i64, u64) -> i64, argument: i64) -> i64;
    /// Goes on where the registers were saved.
    pub fn tcpr_hot_thaw(stack: u64) -> !;
    /// Makes a thread, which calls `f` with `argument` on its stack.
    pub fn tcpr_hot_clone(
        flags: i64,
        stack: u64,
        parent: u64,
        child: u64,
        tls: u64,
        f: extern "C" fn(*const Begin) -> !,
        argument: *const Begin,
    ) -> i64;
    /// Calls `f` on another stack.
    pub fn tcpr_hot_call_on(stack: u64, f: extern "C" fn() -> !) -> !;
}

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".hidden tcpr_hot_freeze",
    ".globl tcpr_hot_freeze",
    "tcpr_hot_freeze:",
    // A thread that is cancelled in its wait is unwound.
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbp, 0",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbx, 0",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r12, 0",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r13, 0",
    "push r14",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r14, 0",
    "push r15",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r15, 0",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rsp",
    "call rax",
    "jmp 2f",
    ".cfi_endproc",
    ".hidden tcpr_hot_thaw",
    ".globl tcpr_hot_thaw",
    "tcpr_hot_thaw:",
    "mov rsp, rdi",
    "mov eax, 1",
    "2:",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".hidden tcpr_hot_clone",
    ".globl tcpr_hot_clone",
    "tcpr_hot_clone:",
    "mov r11, [rsp + 8]",
    "sub rsi, 16",
    "mov [rsi], r9",
    "mov [rsi + 8], r11",
    "mov r10, rcx",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jz 3f",
    "ret",
    "3:",
    "pop rax",
    "pop rdi",
    "xor ebp, ebp",
    "call rax",
    "ud2",
    ".hidden tcpr_hot_call_on",
    ".globl tcpr_hot_call_on",
    "tcpr_hot_call_on:",
    "mov rsp, rdi",
    "and rsp, -16",
    "xor ebp, ebp",
    "call rsi",
    "ud2",
);

/// Nobody asks for a snapshot on other processors: [`IS_KNOWN`].
#[cfg(not(target_arch = "x86_64"))]
mod unknown {
    use super::Begin;

    pub unsafe fn tcpr_hot_freeze(_: extern "C-unwind" fn(i64, u64) -> i64, _: i64) -> i64 {
        0
    }

    pub unsafe fn tcpr_hot_thaw(_: u64) -> ! {
        crate::raw::exit_group(97)
    }

    pub unsafe fn tcpr_hot_clone(
        _: i64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: extern "C" fn(*const Begin) -> !,
        _: *const Begin,
    ) -> i64 {
        -i64::from(libc::ENOSYS)
    }

    pub unsafe fn tcpr_hot_call_on(_: u64, _: extern "C" fn() -> !) -> ! {
        crate::raw::exit_group(97)
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub use unknown::{tcpr_hot_call_on, tcpr_hot_clone, tcpr_hot_freeze, tcpr_hot_thaw};
