//! Processes that are forked from the test. Only for a program of one thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

/// Forks. The child does its work, without whatever its parent would do in the end, and exits with 0, or with 1 when the work
/// panicked. It goes with its parent.
pub fn spawn(work: impl FnOnce()) -> Pid {
    let parent = getpid();
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
            let done = getppid() == parent && catch_unwind(AssertUnwindSafe(work)).is_ok();
            // SAFETY: ends this process, whose parent has all the guards.
            unsafe { libc::_exit(i32::from(!done)) }
        }
    }
}
