//! The command `virtfold`.

fn main() -> std::process::ExitCode {
    virtfold_cli::main()
}
