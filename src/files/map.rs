//! Files as bytes in memory that end in an error, and not in a signal, when another process makes them shorter.
//!
//! A read of a mapped page that the file no longer has is answered by SIGBUS, which ends a process. Here a handler puts
//! zeros in the place of such pages and notes it, so that the reader goes to the end of what it does and then learns from
//! [`Map::check`] that it read no file. Reads with checks would do without a handler, but hold a file's bytes and the
//! weights made of them at once. On Windows a mapped file cannot be made shorter.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::time::SystemTime;

use memmap2::Mmap;

/// A mapped file.
#[derive(Debug)]
pub struct Map {
    /// The handler's note of the map. Before the map, so that it is dropped first: the handler knows no address that
    /// may have become another's.
    #[cfg(unix)]
    watched: handler::Watched,
    map: Mmap,
    file: File,
    modified: Option<SystemTime>,
}

impl Map {
    /// Maps a file. What is read of it counts only once [`Map::check`] has found nothing.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(file: File) -> io::Result<Self> {
        let modified = file.metadata()?.modified().ok();
        // SAFETY: the map is only read, as plain bytes of which every value is one; a page that the file loses becomes
        // zeros by the handler below, and `check` tells of it, as of every other change
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self {
            #[cfg(unix)]
            watched: handler::Watched::new(&map)?,
            map,
            file,
            modified,
        })
    }

    /// Fails if the file changed since it was mapped: what was read then may be of two files, or zeros.
    ///
    /// # Errors
    /// One that says whether the file became shorter or was changed; the system's, if it no longer tells.
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

    /// Gives the memory of `part`, a part of this map, back to the system. Touched again it is read again.
    pub fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Some(offset) = (part.as_ptr() as usize).checked_sub(self.as_ptr() as usize)
            && offset + part.len() <= self.len()
        {
            // SAFETY: of a map that nobody writes to, the same bytes come back from the file.
            let advice =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
            // a system that does not take the advice only holds more
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
    //! The handler of SIGBUS, and the list of maps that it knows. It does nothing but read atomics, map pages and set a
    //! flag, and so may interrupt anything.

    use std::io;
    use std::mem;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// A place for the note of one map. It stays in the list for ever, and is used again.
    #[derive(Debug)]
    struct Slot {
        /// The map's first address; 0 where there is none.
        start: AtomicUsize,
        end: AtomicUsize,
        is_lost: AtomicBool,
        next: Option<&'static Self>,
    }

    /// The first of the list.
    static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
    /// Held while a slot is taken.
    static TAKING: Mutex<()> = Mutex::new(());
    /// The process's handler of SIGBUS before ours.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// Returns the list from its first slot on.
    fn slots() -> impl Iterator<Item = &'static Slot> {
        // SAFETY: null, or a slot that was leaked
        let first = unsafe { SLOTS.load(Ordering::Acquire).as_ref() };
        std::iter::successors(first, |slot| slot.next)
    }

    /// A map that the handler knows, until this is dropped.
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
            // SAFETY: zeros are a `sigaction`, and the calls get whole ones
            unsafe {
                let mut before: libc::sigaction = mem::zeroed();
                if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 {
                    return Err(io::Error::last_os_error().kind());
                }
                // known before the handler can ask for it
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
        // SAFETY: the system hands over a whole `siginfo_t`
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

    /// Puts zeros from the page of `address` up to `end`, where a map ends: a file that lost a page lost those behind it.
    fn put_zeros(address: usize, end: usize) -> bool {
        // SAFETY: `sysconf` may be called anywhere
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return false };
        let start = address - address % page;
        let (pages, how) = (start as *mut libc::c_void, libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED);
        // SAFETY: `errno` is this thread's
        let errno = io::Error::last_os_error();
        // SAFETY: the range belongs to one map, which the interrupted thread reads and nobody gives back meanwhile
        let put = unsafe { libc::mmap(pages, end - start, libc::PROT_READ, how, -1, 0) };
        restore(&errno);
        put != libc::MAP_FAILED
    }

    /// Gives the interrupted code the error number back that it may be about to look at.
    fn restore(errno: &io::Error) {
        let number = errno.raw_os_error().unwrap_or(0);
        // SAFETY: the address is that of this thread's own number
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

    /// A fault that is none of ours has the end that it had before.
    fn elsewhere(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let before = BEFORE.get();
        let is_handler = |action: &&libc::sigaction| ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction);
        match before.filter(is_handler) {
            Some(action) if action.sa_flags & libc::SA_SIGINFO != 0 => {
                type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: with this flag the number is the address of such a function
                let handler = unsafe { mem::transmute::<libc::sighandler_t, Handler>(action.sa_sigaction) };
                handler(signal, info, context);
            }
            Some(action) => {
                // SAFETY: without the flag the number is the address of a function of the signal alone
                let handler =
                    unsafe { mem::transmute::<libc::sighandler_t, extern "C" fn(libc::c_int)>(action.sa_sigaction) };
                handler(signal);
            }
            // back in the code that faulted the signal comes again, and ends the process
            // SAFETY: the default action asks for nothing
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
    fn a_map_reads_as_its_file_and_what_was_given_back_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = file(dir.path());
        let map = Map::new(File::open(&path).unwrap()).unwrap();
        assert!(*map == *bytes);
        map.release(&map[5000..250_000]);
        map.release(&[1, 2, 3]); // no part of it
        assert!(*map == *bytes);
        map.check().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_becomes_shorter_ends_in_an_error_and_not_in_sigbus() {
        let dir = tempfile::tempdir().unwrap();
        // also within a page, where no signal comes, and to nothing
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
            // one that grew back is another file
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

    /// Started by the test below: dies.
    #[cfg(unix)]
    #[test]
    #[ignore = "is started by the next test"]
    fn reads_beside_the_maps() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = file(dir.path());
        let _map = Map::new(File::open(&path).unwrap()).unwrap();
        let file = File::open(&path).unwrap();
        // SAFETY: it is meant to be cut
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
