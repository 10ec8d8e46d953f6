//! AMD's SVM (AMD64 APM vol. 2, chapter 15), with nested paging or with shadows of the guest's tables.

mod long_mode;
mod permissions;
mod switch;
mod vcpu;
mod virtual_interrupt;
mod vmcb;

pub use vcpu::{Svm, SvmVcpu};
