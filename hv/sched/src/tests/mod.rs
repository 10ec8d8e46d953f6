mod cpu;
mod rules;
mod watchdog;
