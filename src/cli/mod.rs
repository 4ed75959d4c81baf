//! The command line: parses, prints the configuration, calls. No logic.

mod data;
mod devices;
mod generate;
mod shader;
mod terminal;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A portable GPT-2 trainer: every operator is a WGSL compute shader.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more: -v for our own steps, -vv for the driver's
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; with no argument a small one on stories that the program makes up
    Train(Box<train::Args>),
    /// Continue a text with a trained model
    Generate(generate::Args),
    /// Prepare, fetch and inspect data
    Data(data::Args),
    /// List the adapters and what each can do
    Devices,
    /// Print the WGSL of a kernel, or the names of all
    Shader(shader::Args),
}

/// Parses the arguments and runs the command; the exit code says what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match cli.verbose {
        0 => "warn,wgpu_hal=error,wgpu_core=error,naga=error",
        1 => "info,wgpu_hal=warn,wgpu_core=warn,naga=warn",
        _ => "debug",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter)).init();
    use_wide_vectors();
    let result = match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Devices => devices::run(),
        Command::Shader(args) => shader::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Mesa's software Vulkan computes f32 kernels some 1.3 times faster with vectors of 512 bits where the CPU has them;
/// by itself it uses 256. A value that the user has set stays.
fn use_wide_vectors() {
    #[cfg(target_arch = "x86_64")]
    if std::env::var_os("LP_NATIVE_VECTOR_WIDTH").is_none()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512bw")
    {
        // SAFETY: nothing else runs yet: this is the first thing after parsing, before any thread is started.
        unsafe { std::env::set_var("LP_NATIVE_VECTOR_WIDTH", "512") };
    }
}
