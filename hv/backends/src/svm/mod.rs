//! AMD's SVM (AMD64 APM vol. 2, chapter 15), with nested paging or with shadows of the guest's tables.

mod backend;
mod breakpoints;
mod dump;
mod events;
mod exits;
mod host;
mod long_mode;
mod permissions;
mod setup;
mod switch;
mod tasks;
mod vcpu;
mod virtual_interrupt;
mod vmcb;

pub use backend::Svm;
pub use vcpu::SvmVcpu;
