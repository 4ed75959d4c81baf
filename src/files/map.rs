//! Maps files into memory. If another process truncates a mapped file, the reader gets an error instead of a signal.
//!
//! A read of a mapped page that the file no longer has raises SIGBUS, which ends a process. Here a signal handler maps
//! zeros in the place of such pages and records it. The reader finishes its work and then learns from [`Map::check`]
//! that the bytes were not the file's. Ordinary reads would need no handler, but would hold a file's bytes and the
//! weights made from them in memory at the same time. On Windows a mapped file cannot be truncated.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::time::SystemTime;

use memmap2::Mmap;

/// A mapped file.
#[derive(Debug)]
pub struct Map {
    /// The handler's record of the map. It is declared before the map so that it is dropped first: the handler must not
    /// know an address range that may already belong to something else.
    #[cfg(unix)]
    watched: handler::Watched,
    map: Mmap,
    file: File,
    modified: Option<SystemTime>,
}

impl Map {
    /// Maps a file. The bytes read from it are valid only once [`Map::check`] has returned `Ok`.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(file: File) -> io::Result<Self> {
        let modified = file.metadata()?.modified().ok();
        // SAFETY: the map is only read, as bytes, for which every value is valid. The handler below replaces a page
        // that the file loses by zeros, and `check` reports it, as it does every other change
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self {
            #[cfg(unix)]
            watched: handler::Watched::new(&map)?,
            map,
            file,
            modified,
        })
    }

    /// Checks that the file has not changed since it was mapped. If it has, the bytes read may mix two versions of it
    /// or be zeros.
    ///
    /// # Errors
    /// An error that states whether the file became shorter or changed; the system's error if its metadata cannot be
    /// read.
    pub fn check(&self) -> io::Result<()> {
        #[cfg(unix)]
        let is_lost = self.watched.is_lost();
        #[cfg(not(unix))]
        let is_lost = false;
        let now = self.file.metadata()?;
        let what = if now.len() < self.map.len() as u64 {
            "became shorter while it was read"
        } else if is_lost || now.modified().ok() != self.modified {
            "changed while it was read"
        } else {
            return Ok(());
        };
        Err(io::Error::other(what))
    }

    /// Returns the memory of `part`, a part of this map, to the system. A later access reads it from the file again.
    pub fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Some(offset) = (part.as_ptr() as usize).checked_sub(self.as_ptr() as usize)
            && offset + part.len() <= self.len()
        {
            // SAFETY: nobody writes to the map, so the same bytes come back from the file
            let advice =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
            // if the system refuses the advice, it only keeps more memory
            advice.unwrap_or_default();
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(unix)]
mod handler {
    //! The handler of SIGBUS, and the list of maps that it knows. The handler only reads atomics, maps pages and sets a
    //! flag, so it may interrupt any code.

    use std::io;
    use std::mem;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// A record of one map. It stays in the list for ever and is reused.
    #[derive(Debug)]
    struct Slot {
        /// The map's first address; 0 if the slot is free.
        start: AtomicUsize,
        end: AtomicUsize,
        is_lost: AtomicBool,
        next: Option<&'static Self>,
    }

    /// The first slot of the list.
    static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
    /// Held while a slot is taken.
    static TAKING: Mutex<()> = Mutex::new(());
    /// The process's handler of SIGBUS before ours.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// Iterates over the list from its first slot.
    fn slots() -> impl Iterator<Item = &'static Slot> {
        // SAFETY: the pointer is null or that of a leaked slot
        let first = unsafe { SLOTS.load(Ordering::Acquire).as_ref() };
        std::iter::successors(first, |slot| slot.next)
    }

    /// A map that the handler knows until this value is dropped.
    #[derive(Debug)]
    pub(super) struct Watched(&'static Slot);

    impl Watched {
        pub(super) fn new(map: &[u8]) -> io::Result<Self> {
            install()?;
            let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
            let free = slots().find(|slot| slot.start.load(Ordering::Acquire) == 0);
            let slot = free.unwrap_or_else(|| {
                let (start, end, is_lost) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
                let slot: &'static mut Slot = Box::leak(Box::new(Slot { start, end, is_lost, next: slots().next() }));
                SLOTS.store(slot, Ordering::Release);
                slot
            });
            slot.is_lost.store(false, Ordering::Release);
            slot.end.store(map.as_ptr() as usize + map.len(), Ordering::Release);
            slot.start.store(map.as_ptr() as usize, Ordering::Release);
            Ok(Self(slot))
        }

        pub(super) fn is_lost(&self) -> bool {
            self.0.is_lost.load(Ordering::Acquire)
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            self.0.start.store(0, Ordering::Release);
        }
    }

    /// Installs the handler, once.
    fn install() -> io::Result<()> {
        static INSTALLED: OnceLock<Result<(), io::ErrorKind>> = OnceLock::new();
        let installed = INSTALLED.get_or_init(|| {
            // SAFETY: all zeros are a valid `sigaction`, and both calls get pointers to whole ones
            unsafe {
                let mut before: libc::sigaction = mem::zeroed();
                if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 {
                    return Err(io::Error::last_os_error().kind());
                }
                // set before the handler is installed, because the handler reads it
                let _ = BEFORE.set(before);
                let mut own: libc::sigaction = mem::zeroed();
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
                own.sa_sigaction = handler as libc::sighandler_t;
                own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                if libc::sigaction(libc::SIGBUS, &raw const own, ptr::null_mut()) != 0 {
                    return Err(io::Error::last_os_error().kind());
                }
            }
            Ok(())
        });
        installed.map_err(io::Error::from)
    }

    extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the system passes a valid `siginfo_t`
        let address = unsafe { (*info).si_addr() } as usize;
        let around = |slot: &&Slot| {
            let start = slot.start.load(Ordering::Acquire);
            start != 0 && (start..slot.end.load(Ordering::Acquire)).contains(&address)
        };
        if let Some(slot) = slots().find(around)
            && put_zeros(address, slot.end.load(Ordering::Acquire))
        {
            slot.is_lost.store(true, Ordering::Release);
            return;
        }
        elsewhere(signal, info, context);
    }

    /// Maps zeros from the page of `address` up to `end`, the end of the map: a file that lost a page has lost all
    /// pages after it.
    fn put_zeros(address: usize, end: usize) -> bool {
        // SAFETY: `sysconf` is safe to call in a signal handler
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return false };
        let start = address - address % page;
        let (pages, how) = (start as *mut libc::c_void, libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED);
        // `errno` belongs to this thread
        let errno = io::Error::last_os_error();
        // SAFETY: the range belongs to one map, which the interrupted thread is reading, so it is not unmapped
        // meanwhile
        let put = unsafe { libc::mmap(pages, end - start, libc::PROT_READ, how, -1, 0) };
        restore(&errno);
        put != libc::MAP_FAILED
    }

    /// Restores `errno`, which the interrupted code may be about to read.
    fn restore(errno: &io::Error) {
        let number = errno.raw_os_error().unwrap_or(0);
        // SAFETY: the address is that of this thread's own `errno`
        #[cfg(any(target_os = "linux", target_os = "emscripten"))]
        unsafe {
            *libc::__errno_location() = number;
        }
        // SAFETY: as above
        #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
        unsafe {
            *libc::__error() = number;
        }
        #[cfg(not(any(
            target_os = "linux",
            target_os = "emscripten",
            target_os = "macos",
            target_os = "ios",
            target_os = "freebsd"
        )))]
        let _ = number;
    }

    /// Handles a fault outside the known maps as the process did before: by its earlier handler or the default action.
    fn elsewhere(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let before = BEFORE.get();
        let is_handler = |action: &&libc::sigaction| ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction);
        match before.filter(is_handler) {
            Some(action) if action.sa_flags & libc::SA_SIGINFO != 0 => {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: with this flag the value is the address of a function of this type
                let handler = unsafe { mem::transmute::<libc::sighandler_t, Handler>(action.sa_sigaction) };
                handler(signal, info, context);
            }
            Some(action) => {
                // SAFETY: without the flag the value is the address of a function that takes only the signal
                let handler =
                    unsafe { mem::transmute::<libc::sighandler_t, extern "C" fn(libc::c_int)>(action.sa_sigaction) };
                handler(signal);
            }
            // when the handler returns, the faulting code raises the signal again, which then ends the process
            // SAFETY: the default action has no preconditions
            None => unsafe {
                libc::signal(signal, libc::SIG_DFL);
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;

    use super::*;

    const BYTES: usize = 300_000;

    fn file(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
        let bytes: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8 + 1).collect();
        let path = dir.join("a");
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    fn shorten(path: &Path, bytes: u64) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    #[test]
    fn a_map_reads_as_its_file_and_released_parts_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = file(dir.path());
        let map = Map::new(File::open(&path).unwrap()).unwrap();
        assert!(*map == *bytes);
        map.release(&map[5000..250_000]);
        map.release(&[1, 2, 3]); // not a part of the map
        assert!(*map == *bytes);
        map.check().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_becomes_shorter_ends_in_an_error_and_not_in_sigbus() {
        let dir = tempfile::tempdir().unwrap();
        // includes a cut within a page, where no signal is raised, and a cut to nothing
        for bytes in [0, 4096, 100_000, BYTES as u64 - 10] {
            let (path, whole) = file(dir.path());
            let (map, other) = (Map::new(File::open(&path).unwrap()).unwrap(), Map::new(File::open(&path).unwrap()));
            assert_eq!(map[0], 1);
            shorten(&path, bytes);
            // from several threads at once
            std::thread::scope(|scope| {
                for start in 0..4 {
                    let (map, whole) = (&map, &whole);
                    scope.spawn(move || {
                        for i in (start..BYTES).step_by(997) {
                            assert!(map[i] == whole[i] || map[i] == 0 && i as u64 >= bytes, "{i} of {bytes}");
                        }
                    });
                }
            });
            assert_eq!(map.check().unwrap_err().to_string(), "became shorter while it was read");
            // a file that grew back counts as changed
            std::fs::write(&path, &whole).unwrap();
            assert_eq!(map.check().unwrap_err().to_string(), "changed while it was read");
            drop(map);
            drop(other);
            // its slot is used again
            let map = Map::new(File::open(&path).unwrap()).unwrap();
            assert!(*map == *whole);
            map.check().unwrap();
        }
    }

    /// Started as a child process by the test below; dies.
    #[cfg(unix)]
    #[test]
    #[ignore = "is started by the next test"]
    fn reads_beside_the_maps() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = file(dir.path());
        let _map = Map::new(File::open(&path).unwrap()).unwrap();
        let file = File::open(&path).unwrap();
        // SAFETY: the map is meant to be truncated, which ends the process
        let beside = unsafe { Mmap::map(&file) }.unwrap();
        shorten(&path, 0);
        println!("lived: {}", beside[BYTES / 2]);
    }

    #[cfg(unix)]
    #[test]
    fn faults_elsewhere_end_the_process_as_before() {
        use std::os::unix::process::ExitStatusExt as _;
        let name = "files::map::tests::reads_beside_the_maps";
        let child = std::process::Command::new(std::env::args().next().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{child:?}");
    }
}
