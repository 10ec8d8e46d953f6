//! Random guests against walks done anew each time.

mod cached;
mod guest;
mod machine;
mod oracle;
mod registers;
mod sequences;
mod vtlb;
