mod barrier;
mod cpu;
mod rules;
mod watchdog;
