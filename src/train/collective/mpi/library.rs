//! An MPI library, opened at run time: the standard ABI of MPI 5, MPICH's, or Open MPI's.
//!
//! Handles (communicators, types, requests) are 32-bit numbers in one library and pointers in another. They are passed
//! as `usize`: on 64-bit little-endian machines both fit, and a library that writes 32 bits leaves the rest zero.

use std::ffi::{CStr, c_int, c_void};
use std::path::{Path, PathBuf};

use super::launcher::Launch;
use crate::error::{Error, Fault, Result};

/// Length of the longest text that any of the libraries writes, in bytes.
const MAX_BYTES: usize = 8192;

/// Names of libraries, the standard ABI first. Debian has another name for MPICH's.
#[cfg(not(target_os = "macos"))]
const NAMES: [&str; 4] = ["libmpi_abi.so.1", "libmpi.so.12", "libmpich.so.12", "libmpi.so.40"];
#[cfg(target_os = "macos")]
const NAMES: [&str; 4] = ["libmpi_abi.1.dylib", "libmpi.12.dylib", "libmpi.40.dylib", "libmpi.dylib"];

/// Constants whose values differ between ABIs.
#[derive(Debug, Clone, Copy)]
struct Constants {
    world: usize,
    byte: usize,
    no_info: usize,
    errors_return: usize,
    type_shared: c_int,
    funneled: c_int,
    status_ignore: usize,
}

const STANDARD: Constants = Constants {
    world: 0x101,
    byte: 0x247,
    no_info: 0x130,
    errors_return: 0x143,
    type_shared: 221,
    funneled: 1024,
    status_ignore: 0,
};

const MPICH: Constants = Constants {
    world: 0x4400_0000,
    byte: 0x4c00_010d,
    no_info: 0x1c00_0000,
    errors_return: 0x5400_0001,
    type_shared: 1,
    funneled: 1,
    status_ignore: 1,
};

/// The MPI functions in use. Each returns 0 on success.
#[derive(Clone, Copy)]
struct Functions {
    init_thread: extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int,
    comm_set_errhandler: extern "C" fn(usize, usize) -> c_int,
    comm_rank: extern "C" fn(usize, *mut c_int) -> c_int,
    comm_size: extern "C" fn(usize, *mut c_int) -> c_int,
    comm_split_type: extern "C" fn(usize, c_int, c_int, usize, *mut usize) -> c_int,
    isend: extern "C" fn(*const u8, c_int, usize, c_int, c_int, usize, *mut usize) -> c_int,
    irecv: extern "C" fn(*mut u8, c_int, usize, c_int, c_int, usize, *mut usize) -> c_int,
    ibcast: extern "C" fn(*mut u8, c_int, usize, c_int, usize, *mut usize) -> c_int,
    test: extern "C" fn(*mut usize, *mut c_int, usize) -> c_int,
    error_string: extern "C" fn(c_int, *mut u8, *mut c_int) -> c_int,
    abort: extern "C" fn(usize, c_int) -> c_int,
    finalize: extern "C" fn() -> c_int,
}

/// An open library, for the thread that calls MPI.
pub struct Library {
    constants: Constants,
    functions: Functions,
    /// Name and version.
    version: String,
}

/// A set of processes that exchange messages.
#[derive(Debug, Clone, Copy)]
pub struct Communicator(usize);

/// A pending message.
#[derive(Debug)]
pub struct Request(usize);

impl Library {
    /// Opens the library at `path`, or the first one that the launcher supports.
    ///
    /// # Errors
    /// [`Error::Device`] with rank, size, host and all libraries that were tried.
    pub fn open(path: Option<&Path>, launch: Launch, host: &str) -> Result<Self> {
        let candidates: Vec<PathBuf> =
            path.map_or_else(|| NAMES.iter().map(PathBuf::from).collect(), |path| vec![path.to_owned()]);
        let mut tried = Vec::new();
        for candidate in &candidates {
            match open(candidate, launch) {
                Ok(library) => return Ok(library),
                Err(why) => tried.push(format!("{}: {why}", candidate.display())),
            }
        }
        let Launch { launcher, rank, size } = launch;
        let fault = Fault::at(
            "mpi",
            format!(
                "{} started this as rank {rank} of {size} on {host}, but no MPI library can be opened",
                launcher.command()
            ),
        );
        let advice = "install the library of the launcher, or name it: --mpi PATH; --mpi none trains alone";
        Err(Error::device(fault.found(tried.join("; ")).advice(advice)))
    }

    /// Returns the library's name and version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Initializes MPI. All later calls must come from this thread. MPI returns errors instead of ending the process.
    ///
    /// # Errors
    /// [`Error::Device`] with the library's error.
    pub fn start(&self) -> Result<Communicator> {
        let mut provided = 0;
        let Constants { world, funneled, errors_return, .. } = self.constants;
        let code =
            (self.functions.init_thread)(std::ptr::null_mut(), std::ptr::null_mut(), funneled, &raw mut provided);
        if code != 0 {
            return Err(Error::device(Fault::at("mpi", format!("{} does not start (code {code})", self.version))));
        }
        if provided < funneled {
            let fault = Fault::at("mpi", format!("{} does not support programs with several threads", self.version));
            return Err(Error::device(fault));
        }
        self.check("MPI_Comm_set_errhandler", (self.functions.comm_set_errhandler)(world, errors_return))?;
        Ok(Communicator(world))
    }

    /// Returns this process's rank and the number of processes.
    ///
    /// # Errors
    /// [`Error::Lost`] with the library's message, as in all functions below.
    pub fn place(&self, Communicator(of): Communicator) -> Result<(usize, usize)> {
        let (mut rank, mut size) = (0, 0);
        self.check("MPI_Comm_rank", (self.functions.comm_rank)(of, &raw mut rank))?;
        self.check("MPI_Comm_size", (self.functions.comm_size)(of, &raw mut size))?;
        let number = |value: c_int| usize::try_from(value).unwrap_or(0);
        Ok((number(rank), number(size)))
    }

    /// Returns the processes of `all` that share memory with this one.
    ///
    /// # Errors
    /// See [`Library::place`].
    pub fn machine(&self, Communicator(all): Communicator) -> Result<Communicator> {
        let Constants { type_shared, no_info, .. } = self.constants;
        let mut machine = 0;
        let code = (self.functions.comm_split_type)(all, type_shared, 0, no_info, &raw mut machine);
        self.check("MPI_Comm_split_type", code)?;
        Ok(Communicator(machine))
    }

    /// Begins to send bytes.
    ///
    /// # Safety
    /// The bytes must not move or change until [`Library::is_done`] returns true.
    ///
    /// # Errors
    /// See [`Library::place`].
    pub unsafe fn send(&self, bytes: &[u8], to: usize, tag: i32, Communicator(of): Communicator) -> Result<Request> {
        let mut request = 0;
        let (count, to) = (count_of(bytes.len())?, count_of(to)?);
        let code = (self.functions.isend)(bytes.as_ptr(), count, self.constants.byte, to, tag, of, &raw mut request);
        self.check("MPI_Isend", code)?;
        Ok(Request(request))
    }

    /// Begins to receive bytes.
    ///
    /// # Safety
    /// The bytes must not move or be used until [`Library::is_done`] returns true.
    ///
    /// # Errors
    /// See [`Library::place`].
    pub unsafe fn receive(
        &self,
        into: &mut [u8],
        from: usize,
        tag: i32,
        Communicator(of): Communicator,
    ) -> Result<Request> {
        let mut request = 0;
        let (count, from) = (count_of(into.len())?, count_of(from)?);
        let code =
            (self.functions.irecv)(into.as_mut_ptr(), count, self.constants.byte, from, tag, of, &raw mut request);
        self.check("MPI_Irecv", code)?;
        Ok(Request(request))
    }

    /// Begins to send bytes of one process to all others.
    ///
    /// # Safety
    /// As for [`Library::receive`], and in the sending process as for [`Library::send`].
    ///
    /// # Errors
    /// See [`Library::place`].
    pub unsafe fn broadcast(&self, bytes: &mut [u8], from: usize, Communicator(of): Communicator) -> Result<Request> {
        let mut request = 0;
        let (count, from) = (count_of(bytes.len())?, count_of(from)?);
        let code = (self.functions.ibcast)(bytes.as_mut_ptr(), count, self.constants.byte, from, of, &raw mut request);
        self.check("MPI_Ibcast", code)?;
        Ok(Request(request))
    }

    /// Lets MPI make progress; returns whether a message is complete.
    ///
    /// # Errors
    /// See [`Library::place`].
    pub fn is_done(&self, Request(request): &mut Request) -> Result<bool> {
        let mut done = 0;
        self.check("MPI_Test", (self.functions.test)(&raw mut *request, &raw mut done, self.constants.status_ignore))?;
        Ok(done != 0)
    }

    /// Ends all processes with an exit code.
    pub fn abort(&self, code: u8) {
        (self.functions.abort)(self.constants.world, c_int::from(code));
    }

    /// Finalizes MPI, after all messages have arrived.
    ///
    /// # Errors
    /// See [`Library::place`].
    pub fn finish(&self) -> Result<()> {
        self.check("MPI_Finalize", (self.functions.finalize)())
    }

    fn check(&self, function: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let what = text(|text, length| (self.functions.error_string)(code, text, length));
        let what = what.map(|what| what.split_whitespace().collect::<Vec<_>>().join(" "));
        Err(Error::lost(Fault::at(
            "mpi",
            format!("{function} failed: {}", what.unwrap_or_else(|| format!("code {code}"))),
        )))
    }
}

/// Converts a number to MPI's type.
fn count_of(number: usize) -> Result<c_int> {
    c_int::try_from(number).map_err(|_| Error::gpu(Fault::at("mpi", format!("{number} is too large for MPI"))))
}

/// Returns name and version from a library's version text, which may have several pages.
fn name_of(version: &str) -> String {
    let first = version.split([',', '\n']).next().unwrap_or_default();
    first.split_whitespace().filter(|word| *word != "Version:").collect::<Vec<_>>().join(" ")
}

/// Calls a function that writes a text and its length; returns the text.
fn text(write: impl FnOnce(*mut u8, *mut c_int) -> c_int) -> Option<String> {
    let (mut text, mut length) = (vec![0_u8; MAX_BYTES + 1], 0);
    if write(text.as_mut_ptr(), &raw mut length) != 0 {
        return None;
    }
    Some(CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().into_owned())
}

#[cfg(all(unix, target_pointer_width = "64", target_endian = "little"))]
fn open(path: &Path, launch: Launch) -> std::result::Result<Library, String> {
    use libloading::os::unix::{Library as Opened, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
    let plain = |error: libloading::Error| {
        let text = error.to_string();
        // the loader repeats the name
        let file = path.display().to_string();
        text.split_once(&format!("{file}: ")).map_or(text.clone(), |(_, why)| why.to_owned())
    };
    // opened privately until its kind is known, because the libraries have functions of the same names
    // SAFETY: opening a library runs its initializers; the user or the system names it as an MPI library
    let private = unsafe { Opened::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(plain)?;
    let version = {
        // SAFETY: MPI allows this function before initialization; its types are those of the standard
        let of = unsafe { private.get::<extern "C" fn(*mut u8, *mut c_int) -> c_int>(b"MPI_Get_library_version\0") };
        let of = of.map_err(|_| "is not an MPI library".to_owned())?;
        text(|text, length| of(text, length)).ok_or("does not return its version")?
    };
    if !launch.launcher.serves(&version) {
        return Err(format!("is {}, which this launcher does not support", name_of(&version)));
    }
    // Open MPI's plugins look up its functions globally
    // SAFETY: as above; it is open already
    let library = unsafe { Opened::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(plain)?;
    let has = |name: &[u8]| {
        // SAFETY: only the address is used
        unsafe { library.get::<*mut c_void>(name) }.ok().map(|symbol| symbol.into_raw() as usize)
    };
    let names = [path.to_owned(), path.canonicalize().unwrap_or_default()];
    let is_named =
        names.iter().any(|name| name.file_name().is_some_and(|name| name.to_string_lossy().contains("mpi_abi")));
    let constants = if is_named && has(b"MPI_Abi_get_version\0").is_some() {
        STANDARD
    } else if has(b"ompi_mpi_comm_world\0").is_some() {
        let address = |name: &[u8]| has(name).ok_or_else(|| "lacks one of Open MPI's objects".to_owned());
        Constants {
            world: address(b"ompi_mpi_comm_world\0")?,
            byte: address(b"ompi_mpi_byte\0")?,
            no_info: address(b"ompi_mpi_info_null\0")?,
            errors_return: address(b"ompi_mpi_errors_return\0")?,
            type_shared: 0,
            funneled: 1,
            status_ignore: 0,
        }
    } else {
        MPICH
    };
    /// Finds a function of a library.
    macro_rules! function {
        ($name:literal) => {{
            let name = concat!($name, "\0").as_bytes();
            // SAFETY: the type is the function's in the MPI standard, with handles as `usize` (see the module)
            *unsafe { library.get(name) }.map_err(|_| concat!("lacks ", $name).to_owned())?
        }};
    }
    let functions = Functions {
        init_thread: function!("MPI_Init_thread"),
        comm_set_errhandler: function!("MPI_Comm_set_errhandler"),
        comm_rank: function!("MPI_Comm_rank"),
        comm_size: function!("MPI_Comm_size"),
        comm_split_type: function!("MPI_Comm_split_type"),
        isend: function!("MPI_Isend"),
        irecv: function!("MPI_Irecv"),
        ibcast: function!("MPI_Ibcast"),
        test: function!("MPI_Test"),
        error_string: function!("MPI_Error_string"),
        abort: function!("MPI_Abort"),
        finalize: function!("MPI_Finalize"),
    };
    // stays open until the process ends, because its threads may outlive everything else
    std::mem::forget((private, library));
    Ok(Library { constants, functions, version: name_of(&version) })
}

#[cfg(not(all(unix, target_pointer_width = "64", target_endian = "little")))]
fn open(_: &Path, _: Launch) -> std::result::Result<Library, String> {
    Err("MPI is supported only on 64-bit Linux, macOS and other Unix systems".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::collective::mpi::launcher::Launcher;

    #[test]
    fn a_library_is_named_in_a_few_words() {
        assert_eq!(name_of("MPICH Version:      5.0.2\nMPICH Release date: Fri\n"), "MPICH 5.0.2");
        assert_eq!(name_of("Open MPI v5.0.11, package: Open MPI x@y Distribution"), "Open MPI v5.0.11");
    }

    #[test]
    fn what_cannot_be_opened_is_listed_with_rank_and_host() {
        let launch = Launch { launcher: Launcher::Mpich, rank: 3, size: 8 };
        let library = |path: &str| Library::open(Some(Path::new(path)), launch, "node7").err().expect("no library");
        let missing = library("/nowhere/libmpi.so.12");
        assert_eq!(missing.exit_code(), 4);
        let text = missing.to_string();
        assert!(text.starts_with("mpi: mpirun started this as rank 3 of 8 on node7, but no MPI library"), "{text}");
        assert!(text.contains("/nowhere/libmpi.so.12: ") && text.contains("--mpi PATH"), "{text}");
        // a library of another kind
        if cfg!(target_os = "linux") {
            let text = library("libc.so.6").to_string();
            assert!(text.contains("libc.so.6: is not an MPI library"), "{text}");
        }
    }
}
