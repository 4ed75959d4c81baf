//! Training under Khronos' validation layer, with synchronization validation, prints no message. It runs on software
//! Vulkan: the layer comes from Debian forky and shares its C library with that driver.
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::not_run::not_run;

/// The message with which the layer lists its checks when an instance is made.
const ACTIVE: &str = "CURRENT-VALIDATION-ENABLED";

/// The layer, in a folder with its settings, its log and a text to train on.
struct Layer {
    folder: tempfile::TempDir,
}

impl Layer {
    /// `Err` if the layer cannot be fetched.
    fn new() -> Result<Self, String> {
        let [home, _, libraries] = crate::common::fetched::fetched(
            "validation",
            "about 10 MB",
            "Khronos' validation layer",
            "vulkan-validationlayers",
        )?;
        let folder = tempfile::tempdir().expect("a folder");
        let file = Path::new(&home).join("usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json");
        let manifest = fs::read_to_string(&file).expect("the layer's manifest");
        // the loader searches its own folders for a name alone
        let library = "libVkLayer_khronos_validation.so";
        let manifest = manifest.replace(&format!("\"{library}\""), &format!("{:?}", format!("{libraries}/{library}")));
        fs::write(folder.path().join("validation.json"), manifest).expect("the folder can be written");
        let words = wgpt::data::Stories::new(7).text(20_000);
        fs::write(folder.path().join("text.txt"), words).expect("the folder can be written");
        Ok(Self { folder })
    }

    /// Trains a small model under the layer with more settings of its own. Returns the layer's log.
    fn log_of_training(&self, precision: &str, more: &[&str], settings: &str) -> String {
        let folder = self.folder.path();
        let log = folder.join(format!("{precision}.log"));
        // information tells what the layer checks; no cache: it would pass what an older layer passed
        let all = format!(
            "khronos_validation.validate_sync = true\n\
             khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG\n\
             khronos_validation.log_filename = {}\n\
             khronos_validation.report_flags = error,warn,perf,info\n\
             khronos_validation.enable_message_limit = false\n\
             khronos_validation.check_shaders_caching = false\n{settings}",
            log.display()
        );
        fs::write(folder.join("vk_layer_settings.txt"), all).expect("the folder can be written");
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/run"))
            .arg(env!("CARGO_BIN_EXE_wgpt"))
            .args(["train", "--text", "text.txt", "--tokenizer", "bytes", "--layers", "1", "--heads", "2"])
            .args(["--channels", "32", "--batch", "2", "--context", "16", "--steps", "3", "--restart"])
            .args(["--out", "run", "--precision", precision])
            .args(more)
            .current_dir(folder)
            .env("WGPT_SOFTWARE", "1")
            // at 8 lanes Mesa's cooperative matrices work, so f16 uses them
            .env("LP_NATIVE_VECTOR_WIDTH", "256")
            .env("WGPT_QUIET", "1")
            .env("WGPT_CACHE", folder.join("cache"))
            .env("VK_ADD_LAYER_PATH", folder)
            .env("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation")
            .env("VK_LAYER_SETTINGS_PATH", folder.join("vk_layer_settings.txt"))
            .output()
            .expect("tools/run starts");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{precision}: {}: {err}", output.status);
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(precision != "f16" || out.contains("coop"), "f16 without matrices, expected their kernels too:\n{out}");
        let text =
            fs::read_to_string(&log).unwrap_or_else(|e| panic!("{precision}: the layer wrote no log: {e}: {err}"));
        let checks = text.split("\n\n").find(|m| m.contains(ACTIVE)).unwrap_or_default();
        for check in ["Core Checks", "Synchronization"] {
            assert!(checks.contains(check), "{precision}: the layer does not check `{check}`:\n{text}");
        }
        text
    }
}

/// The messages of a log but for information.
fn messages(log: &str) -> Vec<&str> {
    // the first line of a message; details follow it
    log.lines().filter(|l| l.starts_with("Validation ") && !l.starts_with("Validation Information")).collect()
}

#[test]
fn training_under_the_validation_layer_prints_no_message() {
    let layer = match Layer::new() {
        Ok(layer) => layer,
        Err(why) => return not_run("training under the validation layer", &why),
    };
    let mut faults = Vec::new();
    for (precision, more) in [("f32", &[][..]), ("f16", &[]), ("f16", &["--devices", "0,0", "--share-device"])] {
        let log = layer.log_of_training(precision, more, "");
        let messages = messages(&log);
        if !messages.is_empty() {
            faults.push(format!("{precision} {more:?}: {} messages, expected none:\n{log}", messages.len()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // advice for NVIDIA's driver, which wgpu does not take: the layer's messages do reach the log
    let log = layer.log_of_training(
        "f32",
        &[],
        "khronos_validation.validate_best_practices = true\nkhronos_validation.validate_best_practices_nvidia = true\n",
    );
    assert!(messages(&log).iter().any(|m| m.contains("BestPractices-NVIDIA-")), "no advice in the log:\n{log}");
}

#[test]
fn messages_are_told_from_information() {
    let log = "Validation Information: [ CURRENT-VALIDATION-ENABLED ] | MessageID = 0xfd7b2292\nvkCreateInstance(): …\n\n\
               Validation Error: [ VUID-StandaloneSpirv-None-10684 ] | MessageID = 0xb210f7c2\nvkCreateShaderModule(): …\n\n\
               Validation Warning: [ SYNC-HAZARD-WRITE-AFTER-WRITE ] | MessageID = 0x5c0ec5d6\nvkQueueSubmit(): …\n";
    assert_eq!(messages(log).len(), 2);
}
