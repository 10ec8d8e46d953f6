mod machine;
mod rules;
mod watchdog;
