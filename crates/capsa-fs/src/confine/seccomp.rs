//! The system calls that serving a folder takes. Any other fails with `EPERM`.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

/// System calls of any arguments.
const ALLOWED: &[libc::c_long] = &[
    // What a request asks for.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fchmod,
    libc::SYS_mknodat,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    // The monitor's messages, the queues' notifications, and the last words.
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    // Memory, threads that wait for each other, and their end.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // What a thread of the C library begins with: it may still do so.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // A panic names its thread.
    libc::SYS_getpid,
    libc::SYS_gettid,
    // The standard library asks, when it is not optimised, whether a descriptor that it closes is open.
    libc::SYS_fcntl,
];

#[cfg(target_arch = "x86_64")]
const OF_THE_ARCHITECTURE: &[libc::c_long] = &[libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OF_THE_ARCHITECTURE: &[libc::c_long] = &[];

/// Memory may be mapped, but not to be executed.
const NOT_EXECUTABLE: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// Installs the filter in every thread of the process. By `any_name`, what landlock does not look at may
/// be changed too, a file's mode and times; else only by a descriptor that landlock let be opened.
pub(super) fn install(any_name: bool) -> io::Result<()> {
    let program = program(any_name).map_err(io::Error::other)?;
    apply_filter_all_threads(&program).map_err(io::Error::other)
}

fn program(any_name: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    // The third argument of both.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC.cast_unsigned().into());
    let plain = SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable, 0)?;
    let plain = SeccompRule::new(vec![plain])?;
    let allowed = ALLOWED.iter().chain(OF_THE_ARCHITECTURE);
    let mut rules: BTreeMap<_, _> = allowed
        .map(|call| (*call, vec![]))
        .chain(
            NOT_EXECUTABLE
                .iter()
                .map(|call| (*call, vec![plain.clone()])),
        )
        .collect();
    if any_name {
        rules.insert(libc::SYS_fchmodat, vec![]);
        rules.insert(libc::SYS_utimensat, vec![]);
    } else {
        // Without a name, the second argument, it is the descriptor's file that is changed.
        let no_name = SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
        rules.insert(libc::SYS_utimensat, vec![SeccompRule::new(vec![no_name])?]);
    }
    let refusal = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    SeccompFilter::new(rules, refusal, SeccompAction::Allow, ARCH.try_into()?)?.try_into()
}
