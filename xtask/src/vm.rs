//! A virtual machine of another kernel: Debian's, unpacked but not installed, with an initramfs that holds one
//! program, run by QEMU without KVM. Knows nothing of what the program tests.

pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod qemu;
