//! The command `virtfold`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
