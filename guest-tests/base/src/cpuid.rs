//! CPUID, and what it says about the hypervisor.

pub use abi::cpuid::LEAF as HYPERVISOR_LEAF;
use abi::cpuid::SIGNATURE;
#[cfg(target_arch = "x86")]
use core::arch::x86::{__cpuid_count, CpuidResult};
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// What CPUID returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Leaf {
    /// All registers 0.
    pub const ZERO: Self = Self { eax: 0, ebx: 0, ecx: 0, edx: 0 };

    /// EBX, EDX, ECX as text: leaf 0 of vendors.
    pub fn vendor(self) -> [u8; 12] {
        abi::cpuid::signature([self.ebx, self.edx, self.ecx])
    }

    /// EBX, ECX, EDX as text: leaf 0x4000_0000 of hypervisors.
    pub fn signature(self) -> [u8; 12] {
        abi::cpuid::signature([self.ebx, self.ecx, self.edx])
    }
}

/// CPUID with EAX = `leaf`, ECX = `subleaf`.
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(leaf, subleaf);
    Leaf { eax, ebx, ecx, edx }
}

/// Whose processor it claims to be, as far as it matters to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// AMD, and Hygon, which took over its design: VMMCALL.
    Amd,
    /// Anybody else: VMCALL.
    Other,
}

/// The processor's vendor.
pub fn vendor() -> Vendor {
    match &cpuid(0, 0).vendor() {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

/// The hypervisor below this guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hypervisor {
    /// No hypervisor, or none that says so.
    Bare,
    /// This project's hypervisor.
    Microhv,
    /// KVM.
    Kvm,
    /// Another one; an emulator, too.
    Other,
}

/// Whether CPUID's hypervisor bit is set.
pub fn hypervisor_bit() -> bool {
    cpuid(1, 0).ecx & 1 << 31 != 0
}

/// The hypervisor below this guest, by the hypervisor bit and the signature.
pub fn hypervisor() -> Hypervisor {
    if !hypervisor_bit() {
        return Hypervisor::Bare;
    }
    match &cpuid(HYPERVISOR_LEAF, 0).signature() {
        SIGNATURE => Hypervisor::Microhv,
        b"KVMKVMKVM\0\0\0" => Hypervisor::Kvm,
        _ => Hypervisor::Other,
    }
}

/// Whether it is QEMU's TCG, and nothing between.
pub fn is_tcg() -> bool {
    hypervisor_bit() && &cpuid(HYPERVISOR_LEAF, 0).signature() == b"TCGTCGTCGTCG"
}
