//! The zygote alone, for tests and benchmarks of this crate; the product's binary has it built in.

fn main() {
    runtime::native::zygote_main(std::env::args_os().skip(1));
}
