//! Tests of what can't be read off a definition: that each thing is read as it was written, and that the pages say what the crate does.

mod hypercalls;
mod lines;
mod pages;
