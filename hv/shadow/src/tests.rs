//! Random guests against walks done anew each time, and vCPUs at once against what they may see.

#[cfg(not(shuttle))]
mod cached;
#[cfg(not(shuttle))]
mod guest;
#[cfg(not(shuttle))]
mod machine;
#[cfg(shuttle)]
mod models;
#[cfg(not(shuttle))]
mod oracle;
#[cfg(not(shuttle))]
mod registers;
#[cfg(not(shuttle))]
mod sequences;
#[cfg(not(shuttle))]
mod vtlb;
