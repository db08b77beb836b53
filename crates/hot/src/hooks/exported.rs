//! How a hook is exported, and when its call goes straight to the next library.

/// Exports functions under the C library's names. The body is for calls that are recorded or followed; in it, `next` is
/// the next function of the name.
macro_rules! hooks {
    ($($(#[$attribute:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)*) => {$(
        /// As in the C library.
        ///
        /// # Safety
        /// As in the C library.
        $(#[$attribute])*
        #[no_mangle]
        pub unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret {
            #[allow(dead_code)]
            #[inline(always)]
            unsafe fn next($($arg: $type),*) -> $ret {
                $crate::next::call_next!($name($($arg: $type),*) -> $ret)
            }
            if $crate::start::passes() {
                // SAFETY: the caller's arguments, as they came.
                return unsafe { next($($arg),*) };
            }
            #[allow(unused_unsafe)]
            // SAFETY: the caller keeps the C library's contract, on which the body relies.
            unsafe { $body }
        }
    )*};
}
pub(crate) use hooks;

/// As [`hooks`], of functions that the allocator calls, too: they are told, behind their arguments, from where they are
/// called, and the allocator's calls are left out.
macro_rules! with_caller {
    (@pass $name:ident, $call:expr, $($arg:ident),*) => { $call };
    // A wait for a condition, with its mutex.
    (@pass $name:ident left_out, $call:expr, $it:ident, $mutex:ident $(, $arg:ident)*) => {
        $crate::snapshot::park::wait_left_out($it, $mutex, || $call)
    };
    ($($register_x86:literal $register_arm:literal fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty; by $target:ident $(, $left_out:ident)? $body:block)*) => {$(
        /// As in the C library.
        ///
        /// # Safety
        /// As in the C library.
        #[unsafe(naked)]
        #[no_mangle]
        pub unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            std::arch::naked_asm!(concat!("mov ", $register_x86, ", [rsp]"), "jmp {target}", target = sym $target);
            #[cfg(target_arch = "aarch64")]
            std::arch::naked_asm!(concat!("mov ", $register_arm, ", x30"), "b {target}", target = sym $target);
        }

        unsafe extern "C-unwind" fn $target($($arg: $type,)* caller: usize) -> $ret {
            #[inline(always)]
            unsafe fn next($($arg: $type),*) -> $ret {
                $crate::next::call_next!($name($($arg: $type),*) -> $ret)
            }
            if $crate::start::passes() || $crate::threads::is_allocator(caller) {
                // SAFETY: the caller's arguments, as they came.
                return unsafe { $crate::hooks::exported::with_caller!(@pass $name $($left_out)?, next($($arg),*), $($arg),*) };
            }
            #[allow(unused_unsafe)]
            // SAFETY: the caller keeps the C library's contract, on which the body relies.
            unsafe { $body }
        }
    )*};
}
pub(crate) use with_caller;
