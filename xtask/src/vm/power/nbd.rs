//! Serves a [`Disk`] as QEMU asks for it: NBD, the fixed newstyle handshake and simple replies.

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};

use super::disk::Disk;

const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Of the handshake: options can be refused, and no zeroes follow the export.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) + 1;
const INFO_EXPORT: u16 = 0;

/// Of the export: flags are told, and flushes and forced writes are understood.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const FORCE_UNIT_ACCESS: u16 = 1;

const EINVAL: u32 = 22;
/// Longer options are nobody's.
const OPTION_LEN: u32 = 4096;
/// Longer transfers are not asked for.
const TRANSFER_LEN: u32 = 32 << 20;
/// Requests that are read before others are done.
const AHEAD: usize = 64;

/// What all disks of a machine hang on: once it is off, none of them answers.
#[derive(Debug)]
pub(super) struct Power {
    is_on: RwLock<bool>,
    /// Writes and flushes until it goes off by itself.
    left: AtomicU64,
}

impl Power {
    /// Goes off with the so-many-th write or flush of any disk, which is not done any more.
    pub(super) fn new(requests: Option<u64>) -> Self {
        Self {
            is_on: RwLock::new(true),
            left: AtomicU64::new(requests.unwrap_or(u64::MAX)),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        !*self.is_on.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is answered after this.
    pub(super) fn cut(&self) {
        *self.is_on.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Counts a write or flush; at 0 no more of them are done.
    fn count(&self) -> bool {
        let next = |left: u64| Some(left.saturating_sub(1));
        let order = Ordering::SeqCst;
        self.left.fetch_update(order, order, next) != Ok(0)
    }
}

/// A disk in the hands of one machine.
#[derive(Debug)]
pub(super) struct Server {
    disk: Arc<Mutex<Disk>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Waits for the machine at a socket, in a thread.
    pub(super) fn start(disk: Disk, socket: &Path, power: &Arc<Power>) -> Result<Self> {
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        let disk = Arc::new(Mutex::new(disk));
        let (shared, power) = (Arc::clone(&disk), Arc::clone(power));
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            serve(&stream, &shared, &power)
        });
        Ok(Self { disk, thread })
    }

    /// Gives the disk back once the machine is gone, which must have connected.
    pub(super) fn end(self) -> Result<Disk> {
        let served = self.thread.join();
        served.map_err(|_| anyhow!("a disk's server has panicked"))??;
        let disk = Arc::into_inner(self.disk).context("a disk is in use")?;
        Ok(disk.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(stream: &UnixStream, disk: &Mutex<Disk>, power: &Power) -> io::Result<()> {
    let len = lock(disk).len();
    let mut reader = BufReader::new(stream);
    if !shake_hands(&mut reader, stream, len)? {
        return Ok(());
    }
    let (sender, requests) = mpsc::sync_channel(AHEAD);
    let replied = AtomicU64::new(lock(disk).completed());
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer_all(stream, disk, power, requests, &replied));
        // The end of the machine ends the connection at any place.
        while let Ok(Some(request)) = Request::read(&mut reader, &replied) {
            if sender.send(request).is_err() {
                break;
            }
        }
        drop(sender);
        answering
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a disk has panicked")))
    })
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Agrees on the one export, whatever its name; false when the client wants none.
fn shake_hands(reader: &mut impl Read, mut stream: impl io::Write, len: u64) -> io::Result<bool> {
    let mut hello = INIT_MAGIC.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let flags = u32::from_be_bytes(take(reader)?);
    loop {
        if u64::from_be_bytes(take(reader)?) != OPTION_MAGIC {
            return Err(io::Error::other("the client's option has another magic"));
        }
        let option = u32::from_be_bytes(take(reader)?);
        let option_len = u32::from_be_bytes(take(reader)?);
        if option_len > OPTION_LEN {
            return Err(io::Error::other("the client's option is too long"));
        }
        io::copy(
            &mut reader.by_ref().take(option_len.into()),
            &mut io::sink(),
        )?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            reply.extend(option.to_be_bytes());
            reply.extend(kind.to_be_bytes());
            reply.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
            reply.extend(data);
            stream.write_all(&reply)
        };
        let mut export = len.to_be_bytes().to_vec();
        export.extend(EXPORT_FLAGS.to_be_bytes());
        match option {
            OPTION_EXPORT_NAME => {
                if flags & u32::from(NO_ZEROES) == 0 {
                    export.extend([0; 124]);
                }
                stream.write_all(&export)?;
                return Ok(true);
            }
            OPTION_GO | OPTION_INFO => {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend(export);
                reply(REPLY_INFO, &info)?;
                reply(REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                reply(REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn take<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[derive(Debug)]
struct Request {
    flags: u16,
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
    data: Vec<u8>,
    /// Writes that the client knew to be complete when it sent this.
    completed: u64,
}

impl Request {
    fn read(reader: &mut impl Read, replied: &AtomicU64) -> io::Result<Option<Self>> {
        if u32::from_be_bytes(take(reader)?) != REQUEST_MAGIC {
            return Err(io::Error::other("the client's request has another magic"));
        }
        let completed = replied.load(Ordering::SeqCst);
        let mut request = Self {
            flags: u16::from_be_bytes(take(reader)?),
            command: u16::from_be_bytes(take(reader)?),
            cookie: take(reader)?,
            offset: u64::from_be_bytes(take(reader)?),
            len: u32::from_be_bytes(take(reader)?),
            data: Vec::new(),
            completed,
        };
        if request.len > TRANSFER_LEN {
            return Err(io::Error::other("the client asks for too much at once"));
        }
        match request.command {
            COMMAND_DISCONNECT => return Ok(None),
            COMMAND_WRITE => {
                request.data.resize(request.len as usize, 0);
                reader.read_exact(&mut request.data)?;
            }
            _ => {}
        }
        Ok(Some(request))
    }

    /// The error number, and what was read.
    fn run(self, disk: &mut Disk) -> (u32, Vec<u8>) {
        let mut read = Vec::new();
        let done = match self.command {
            COMMAND_READ => {
                read.resize(self.len as usize, 0);
                disk.read(self.offset, &mut read)
            }
            COMMAND_WRITE => {
                let forced = self.flags & FORCE_UNIT_ACCESS != 0;
                disk.write(self.offset, self.data, forced)
            }
            COMMAND_FLUSH => disk.flush(self.completed),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        match done {
            Ok(()) => (0, read),
            Err(_) => (EINVAL, Vec::new()),
        }
    }
}

/// Does requests one after another until the power goes or the machine is gone. When it goes the
/// connection stays: the machine must not notice.
fn answer_all(
    mut stream: &UnixStream,
    disk: &Mutex<Disk>,
    power: &Power,
    requests: mpsc::Receiver<Request>,
    replied: &AtomicU64,
) -> io::Result<()> {
    for request in requests {
        let is_on = power.is_on.read().unwrap_or_else(PoisonError::into_inner);
        if !*is_on {
            continue;
        }
        if request.command != COMMAND_READ && !power.count() {
            drop(is_on);
            power.cut();
            continue;
        }
        let (cookie, mut disk) = (request.cookie, lock(disk));
        let (error, read) = request.run(&mut disk);
        let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(error.to_be_bytes());
        reply.extend(cookie);
        reply.extend(read);
        // A machine that is gone needs no answer. From this moment on a flush may count on it.
        replied.store(disk.completed(), Ordering::SeqCst);
        let _ = stream.write_all(&reply);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    struct Client {
        server: Server,
        stream: UnixStream,
        power: Arc<Power>,
        _dir: tempfile::TempDir,
    }

    impl Client {
        fn connect(requests: Option<u64>) -> Result<Self> {
            let dir = tempfile::tempdir()?;
            let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
            File::create(&image)?.set_len(1 << 20)?;
            let power = Arc::new(Power::new(requests));
            let server = Server::start(Disk::open(&image)?, &socket, &power)?;
            Ok(Self {
                server,
                stream: UnixStream::connect(&socket)?,
                power,
                _dir: dir,
            })
        }

        fn option(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
            self.stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
            self.stream.write_all(&option.to_be_bytes())?;
            self.stream.write_all(&0_u32.to_be_bytes())?;
            self.option_reply(option)
        }

        fn option_reply(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
            assert_eq!(
                u64::from_be_bytes(take(&mut self.stream)?),
                OPTION_REPLY_MAGIC
            );
            assert_eq!(u32::from_be_bytes(take(&mut self.stream)?), option);
            let kind = u32::from_be_bytes(take(&mut self.stream)?);
            let len = u32::from_be_bytes(take(&mut self.stream)?);
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            Ok((kind, data))
        }

        fn agree(&mut self) -> Result<()> {
            let hello: [u8; 18] = take(&mut self.stream)?;
            assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
            self.stream.write_all(&3_u32.to_be_bytes())?;
            let structured_replies = self.option(8)?;
            assert_eq!(structured_replies, (REPLY_UNSUPPORTED, Vec::new()));
            let (kind, info) = self.option(OPTION_GO)?;
            assert_eq!((kind, info.len()), (REPLY_INFO, 12));
            assert_eq!(&info[2..10], &(1_u64 << 20).to_be_bytes());
            assert_eq!(self.option_reply(OPTION_GO)?.0, REPLY_ACK);
            Ok(())
        }

        fn ask(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> Result<()> {
            let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
            request.extend(0_u16.to_be_bytes());
            request.extend(command.to_be_bytes());
            request.extend(*b"a cookie");
            request.extend(offset.to_be_bytes());
            request.extend(len.to_be_bytes());
            request.extend(data);
            Ok(self.stream.write_all(&request)?)
        }

        fn reply(&mut self) -> Result<u32> {
            assert_eq!(u32::from_be_bytes(take(&mut self.stream)?), REPLY_MAGIC);
            let error = u32::from_be_bytes(take(&mut self.stream)?);
            assert_eq!(&take::<8>(&mut self.stream)?, b"a cookie");
            Ok(error)
        }
    }

    #[test]
    fn a_client_writes_flushes_and_reads() -> Result<()> {
        let mut client = Client::connect(None)?;
        client.agree()?;
        client.ask(COMMAND_WRITE, 8192, 3, b"abc")?;
        assert_eq!(client.reply()?, 0);
        client.ask(COMMAND_FLUSH, 0, 0, b"")?;
        assert_eq!(client.reply()?, 0);
        client.ask(COMMAND_WRITE, 16384, 3, b"def")?;
        assert_eq!(client.reply()?, 0);
        client.ask(COMMAND_READ, 8191, 4, b"")?;
        assert_eq!((client.reply()?, take(&mut client.stream)?), (0, *b"\0abc"));
        client.ask(COMMAND_READ, 1 << 20, 1, b"")?;
        assert_eq!(client.reply()?, EINVAL);
        drop(client.stream);
        let mut disk = client.server.end()?;
        let counts = disk.take_counts();
        assert_eq!((counts.writes, counts.flushes), (2, 1));
        disk.cut(&mut crate::e2e::Random::new(1))?;
        assert_eq!(disk.take_counts().uncovered, 1);
        Ok(())
    }

    #[test]
    fn without_power_nothing_is_done_and_nothing_answered() -> Result<()> {
        let mut client = Client::connect(Some(1))?;
        client.agree()?;
        client.ask(COMMAND_WRITE, 0, 3, b"abc")?;
        assert_eq!(client.reply()?, 0);
        assert!(!client.power.is_off());
        client.ask(COMMAND_FLUSH, 0, 0, b"")?;
        while !client.power.is_off() {
            std::thread::yield_now();
        }
        client.ask(COMMAND_READ, 0, 3, b"")?;
        client.stream.shutdown(std::net::Shutdown::Write)?;
        // The end of the connection is all that comes.
        let mut rest = Vec::new();
        client.stream.read_to_end(&mut rest)?;
        assert_eq!(rest, b"");
        let counts = client.server.end()?.take_counts();
        assert_eq!((counts.writes, counts.flushes), (1, 0));
        Ok(())
    }
}
