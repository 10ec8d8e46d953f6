//! Memory types, as MTRRs, EPT entries and VMX's capabilities encode them (Intel SDM vol. 3, tables 12-2 and 12-8).

/// Uncached.
pub const UNCACHED: u64 = 0;
/// Write-through.
pub const WRITE_THROUGH: u64 = 4;
/// Write-protected.
pub const WRITE_PROTECTED: u64 = 5;
/// Write-back.
pub const WRITE_BACK: u64 = 6;
