//! How a guest finds the hypervisor: CPUID leaf 1, ECX bit 31 tells that there is one, and [`LEAF`] which.

/// The first of the leaves that are a hypervisor's, as KVM has them too (Linux's Documentation/virt/kvm/x86/cpuid.rst). EAX is the
/// largest of them; EBX, ECX and EDX are the [`SIGNATURE`].
pub const LEAF: u32 = 0x4000_0000;

/// How this hypervisor names itself.
pub const SIGNATURE: &[u8; 12] = b"microhv-rust";

/// The signature in the registers EBX, ECX and EDX of [`LEAF`].
///
/// ```
/// // KVM's, "KVMKVMKVM\0\0\0".
/// let registers = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// assert_eq!(&abi::cpuid::signature(registers), b"KVMKVMKVM\0\0\0");
/// ```
#[must_use]
pub const fn signature([ebx, ecx, edx]: [u32; 3]) -> [u8; 12] {
    let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) = (ebx.to_le_bytes(), ecx.to_le_bytes(), edx.to_le_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l]
}
