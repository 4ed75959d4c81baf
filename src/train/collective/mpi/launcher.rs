//! Detects from the environment whether an MPI launcher started this process, and its rank and number of processes.

use crate::error::{Error, Fault, Result};

/// The launcher that started this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// `mpirun` of MPICH or a derivative such as Intel MPI.
    Mpich,
    /// Slurm's `srun` with PMIx or PMI-2, which supports several libraries.
    Slurm,
}

impl Launcher {
    /// Returns its command.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Self::OpenMpi | Self::Mpich => "mpirun",
            Self::Slurm => "srun",
        }
    }

    /// Returns whether the launcher supports a library with this version text.
    pub(super) fn serves(self, version: &str) -> bool {
        let is_open_mpi = version.contains("Open MPI");
        match self {
            Self::OpenMpi => is_open_mpi,
            Self::Mpich => !is_open_mpi,
            Self::Slurm => true,
        }
    }
}

/// A process among those that a launcher started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The launcher.
    pub launcher: Launcher,
    /// Rank of the process.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
}

/// Reads the variables that launchers set; returns `None` if none are set.
///
/// # Errors
/// [`Error::Device`] if Slurm started several processes that cannot find each other.
pub fn launched(read: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
    let number = |name: &str| read(name).and_then(|text| text.trim().parse::<usize>().ok());
    let by = |launcher, rank: &str, size: &str| Some(Launch { launcher, rank: number(rank)?, size: number(size)? });
    let in_step = number("SLURM_STEP_NUM_TASKS").is_some();
    let of_pmi = if in_step { Launcher::Slurm } else { Launcher::Mpich };
    let found = by(Launcher::OpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
        .or_else(|| by(of_pmi, "PMI_RANK", "PMI_SIZE"))
        .or_else(|| by(Launcher::Mpich, "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"))
        .or_else(|| by(Launcher::Slurm, "PMIX_RANK", "SLURM_STEP_NUM_TASKS"));
    if found.is_none()
        && let (Some(rank), Some(size @ 2..)) = (number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS"))
    {
        let fault = Fault::at("mpi", format!("srun started this as rank {rank} of {size}, without MPI"));
        return Err(Error::device(fault.advice(
            "try srun --mpi=pmix or --mpi=pmi2 (srun --mpi=list shows the choices), or mpirun within salloc",
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        launched(|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        let is = |launcher, rank, size| Some(Launch { launcher, rank, size });
        let open = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "8"), ("PMIX_RANK", "3")];
        assert_eq!(read(&open).unwrap(), is(Launcher::OpenMpi, 3, 8));
        assert_eq!(read(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).unwrap(), is(Launcher::Mpich, 0, 2));
        let step = ("SLURM_STEP_NUM_TASKS", "4");
        assert_eq!(read(&[("PMI_RANK", "1"), ("PMI_SIZE", "4"), step]).unwrap(), is(Launcher::Slurm, 1, 4));
        assert_eq!(read(&[("PMIX_RANK", "1"), ("SLURM_PROCID", "1"), step]).unwrap(), is(Launcher::Slurm, 1, 4));
        assert_eq!(read(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]).unwrap(), is(Launcher::Mpich, 0, 1));
        // mpirun within salloc
        let within = [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "2")];
        assert_eq!(read(&within).unwrap(), is(Launcher::Mpich, 0, 2));
    }

    #[test]
    fn nobody_has_started_a_process_without_them() {
        for alone in [
            &[][..],
            &[("PMI_RANK", "x"), ("PMI_SIZE", "2")],
            &[("OMPI_COMM_WORLD_SIZE", "2")],
            // a batch script, before any srun
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")],
            &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")],
        ] {
            assert_eq!(read(alone).unwrap(), None, "{alone:?}");
        }
    }

    #[test]
    fn processes_of_srun_that_do_not_know_each_other_are_an_error() {
        let error = read(&[("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8")]).unwrap_err();
        assert!(matches!(error, Error::Device(_)) && error.to_string().contains("rank 3 of 8"), "{error}");
    }

    #[test]
    fn a_launcher_serves_its_own_library() {
        let [open, mpich] = ["Open MPI v5.0.11, package: ...", "MPICH Version:      4.0.3"];
        for (launcher, serves) in
            [(Launcher::OpenMpi, [true, false]), (Launcher::Mpich, [false, true]), (Launcher::Slurm, [true, true])]
        {
            assert_eq!([open, mpich].map(|version| launcher.serves(version)), serves, "{launcher:?}");
        }
    }
}
