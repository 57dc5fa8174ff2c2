//! The store for asynchronous programs: each operation is one blocking task.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use ovl_diff::{Change, LayerSize};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use ovl_quota::Limits;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::sync::mpsc;

use crate::blocking;
use crate::error::Error;
use crate::findings::{CheckReport, Garbage, Repaired, UpkeepOptions};
use crate::types::{
    Applied, Base, CreateLayer, ExportOptions, ImportOptions, LayerInfo, LayerList, LayerQuota,
    MountRequest, Reclaimed, Status,
};

/// Bytes in one piece of an archive on its way between the blocking and the asynchronous side.
const PIECE_LEN: usize = 128 * 1024;
/// Pieces under way at most.
const PIECES: usize = 8;

/// An archive that an operation reads.
pub type ArchiveSource = Pin<Box<dyn AsyncRead + Send>>;

/// A layer store, for asynchronous programs.
///
/// # Cancel safety
///
/// Dropping a future before it was first polled does nothing. What a drop does afterwards is said of
/// each method; nothing half done is ever left.
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// The driver's name: `overlay2`.
    #[doc(alias = "String")]
    fn name(&self) -> &'static str;

    /// Makes an empty, open layer.
    ///
    /// # Cancel safety
    /// The layer is made even when nobody waits any more.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::create`].
    #[doc(alias = "Create")]
    async fn create(&self, layer: &CreateLayer) -> Result<(), Error>;

    /// Makes an empty, open layer that a container will write to.
    ///
    /// # Cancel safety
    /// The layer is made even when nobody waits any more.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::create_writable`].
    #[doc(alias = "CreateReadWrite")]
    async fn create_writable(&self, layer: &CreateLayer) -> Result<(), Error>;

    /// Makes a sealed layer from an archive, in one step.
    ///
    /// # Cancel safety
    /// Dropping the future while the archive is read ends it early: the import fails and leaves
    /// nothing behind. Once it was read to its end, the layer is made even when nobody waits.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::import`].
    async fn import(
        &self,
        layer: &CreateLayer,
        archive: ArchiveSource,
        options: ImportOptions,
    ) -> Result<Applied, Error>;

    /// Applies an archive to an open layer that is not mounted.
    ///
    /// # Cancel safety
    /// Dropping the future while the archive is read ends it early: the layer stays as it was. Once
    /// it was read to its end, it is applied even when nobody waits.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::apply`].
    #[doc(alias = "ApplyDiff")]
    async fn apply(
        &self,
        id: &LayerId,
        archive: ArchiveSource,
        options: ImportOptions,
    ) -> Result<Applied, Error>;

    /// What a layer changes against `base`, as an archive. Errors that come up while it is written
    /// end the stream with an error.
    ///
    /// # Cancel safety
    /// Dropping the stream ends the work at its next piece.
    ///
    /// # Errors
    /// [`Error::LayerNotFound`]. All others come out of the stream.
    #[doc(alias = "Diff")]
    async fn diff(&self, id: &LayerId, base: &Base) -> Result<DiffStream, Error> {
        self.diff_with(id, base, ExportOptions::new()).await
    }

    /// As [`diff`](Self::diff), with a say in what the archive holds.
    ///
    /// # Cancel safety
    /// Dropping the stream ends the work at its next piece.
    ///
    /// # Errors
    /// As for [`diff`](Self::diff).
    async fn diff_with(
        &self,
        id: &LayerId,
        base: &Base,
        options: ExportOptions,
    ) -> Result<DiffStream, Error>;

    /// Lists what a layer changes against `base`.
    ///
    /// # Cancel safety
    /// Nothing is changed; the reading goes on in the background to its end.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::changes`].
    #[doc(alias = "Changes")]
    async fn changes(&self, id: &LayerId, base: &Base) -> Result<Vec<Change>, Error>;

    /// Adds up what a layer adds or changes against `base`.
    ///
    /// # Cancel safety
    /// Nothing is changed; the reading goes on in the background to its end.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::size`].
    #[doc(alias = "DiffSize")]
    async fn size(&self, id: &LayerId, base: &Base) -> Result<LayerSize, Error>;

    /// Mounts a layer, or adds a hold to its mount.
    ///
    /// # Cancel safety
    /// The hold is taken even when nobody waits for it any more; unmount to release it.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::mount`].
    #[doc(alias = "Get")]
    async fn mount(&self, id: &LayerId, request: &MountRequest) -> Result<PathBuf, Error>;

    /// Releases one hold, and unmounts with the last. Gives the holds left.
    ///
    /// # Cancel safety
    /// The hold is released even when nobody waits any more.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::unmount`].
    #[doc(alias = "Put")]
    async fn unmount(&self, id: &LayerId, mode: UnmountMode) -> Result<u64, Error>;

    /// Takes away every mount of a layer, whoever holds it, and gives the ids.
    ///
    /// # Cancel safety
    /// The mounts go even when nobody waits any more.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::unmount_all`].
    #[doc(alias = "Cleanup")]
    async fn unmount_all(&self, mode: UnmountMode) -> Result<Vec<LayerId>, Error>;

    /// Removes a layer, and frees its space in the background.
    ///
    /// # Cancel safety
    /// The layer is removed even when nobody waits any more. Its space may then wait for the next
    /// [`reclaim`](Self::reclaim).
    ///
    /// # Errors
    /// As [`blocking::Overlay2::remove`].
    #[doc(alias = "Remove")]
    async fn remove(&self, id: &LayerId, force: bool) -> Result<(), Error>;

    /// Frees the space of removed layers.
    ///
    /// # Cancel safety
    /// It goes on in the background to its end.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::reclaim`].
    async fn reclaim(&self) -> Result<Reclaimed, Error>;

    /// Says what is wrong in the home.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::check`].
    async fn check(&self) -> Result<CheckReport, Error>;

    /// Mends what has one right answer.
    ///
    /// # Cancel safety
    /// It goes on in the background to its end.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::repair`].
    async fn repair(&self, options: UpkeepOptions) -> Result<Repaired, Error>;

    /// Takes away what nobody needs any more.
    ///
    /// # Cancel safety
    /// It goes on in the background to its end.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::gc`].
    async fn gc(&self, options: UpkeepOptions) -> Result<Garbage, Error>;

    /// Whether there is a layer of this id.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::contains`].
    #[doc(alias = "Exists")]
    async fn contains(&self, id: &LayerId) -> Result<bool, Error>;

    /// Lists all layers.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::layers`].
    async fn layers(&self) -> Result<LayerList, Error>;

    /// Everything about one layer; [`LayerInfo::docker_pairs`] has the part that Docker gives.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::inspect`].
    #[doc(alias = "GetMetadata")]
    async fn inspect(&self, id: &LayerId) -> Result<LayerInfo, Error>;

    /// The project of a layer, what it takes and may take.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::quota`].
    async fn quota(&self, id: &LayerId) -> Result<Option<LayerQuota>, Error>;

    /// Sets both limits of a layer; `None` lifts one.
    ///
    /// # Cancel safety
    /// Once begun, the limits are set, waited for or not.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::set_limits`].
    async fn set_limits(&self, id: &LayerId, limits: Limits) -> Result<(), Error>;

    /// What this home and this kernel can do.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// As [`blocking::Overlay2::status`].
    #[doc(alias = "Status")]
    async fn status(&self) -> Result<Status, Error>;
}

/// [`blocking::Overlay2`] for asynchronous programs. Clones share the store.
///
/// Every method must run inside a tokio runtime.
#[derive(Clone, Debug)]
pub struct Overlay2 {
    store: Arc<blocking::Overlay2>,
}

impl Overlay2 {
    /// An asynchronous shell around a store.
    #[must_use]
    pub fn new(store: blocking::Overlay2) -> Self {
        Self {
            store: Arc::new(store),
        }
    }

    /// The store.
    #[must_use]
    pub fn blocking(&self) -> &blocking::Overlay2 {
        &self.store
    }

    /// Runs one whole operation on the pool of blocking threads.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&blocking::Overlay2) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || operation(&store)).await {
            Ok(result) => result,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => {
                    let home = self.store.home();
                    Err(Error::io(
                        "finish the operation on",
                        home,
                        io::Error::other(cancelled),
                    ))
                }
            },
        }
    }

    /// Runs an operation that reads an archive, and feeds it from an asynchronous source.
    async fn run_with_archive<T: Send + 'static>(
        &self,
        mut archive: ArchiveSource,
        operation: impl FnOnce(&blocking::Overlay2, PieceReader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let work = self.run(move |store| operation(store, PieceReader::new(receiver)));
        let feed = async move {
            loop {
                let mut piece = Vec::with_capacity(PIECE_LEN);
                let piece = match archive.read_buf(&mut piece).await {
                    Ok(0) => Piece::End,
                    Ok(_) => Piece::Data(piece),
                    Err(error) => Piece::Failed(error),
                };
                let last = !matches!(piece, Piece::Data(_));
                // The operation has ended, with its own error, when nobody receives any more.
                if sender.send(piece).await.is_err() || last {
                    return;
                }
            }
        };
        // A source that has nothing to say must not keep a result back.
        let (mut work, mut feed) = (std::pin::pin!(work), std::pin::pin!(feed));
        tokio::select! {
            result = &mut work => result,
            () = &mut feed => work.await,
        }
    }
}

#[async_trait]
impl Driver for Overlay2 {
    fn name(&self) -> &'static str {
        "overlay2"
    }

    async fn create(&self, layer: &CreateLayer) -> Result<(), Error> {
        let layer = layer.clone();
        self.run(move |store| store.create(&layer)).await
    }

    async fn create_writable(&self, layer: &CreateLayer) -> Result<(), Error> {
        let layer = layer.clone();
        self.run(move |store| store.create_writable(&layer)).await
    }

    async fn import(
        &self,
        layer: &CreateLayer,
        archive: ArchiveSource,
        options: ImportOptions,
    ) -> Result<Applied, Error> {
        let layer = layer.clone();
        self.run_with_archive(archive, move |store, pieces| {
            store.import(&layer, pieces, options, &mut |_| {})
        })
        .await
    }

    async fn apply(
        &self,
        id: &LayerId,
        archive: ArchiveSource,
        options: ImportOptions,
    ) -> Result<Applied, Error> {
        let id = id.clone();
        self.run_with_archive(archive, move |store, pieces| {
            store.apply(&id, pieces, options, &mut |_| {})
        })
        .await
    }

    async fn diff_with(
        &self,
        id: &LayerId,
        base: &Base,
        options: ExportOptions,
    ) -> Result<DiffStream, Error> {
        if !self.contains(id).await? {
            let home = self.store.home().to_owned();
            return Err(Error::LayerNotFound {
                id: id.clone(),
                home,
            });
        }
        let (sender, receiver) = mpsc::channel(PIECES);
        let (store, id, base) = (Arc::clone(&self.store), id.clone(), base.clone());
        tokio::task::spawn_blocking(move || {
            let mut writer = PieceWriter {
                sender,
                piece: Vec::new(),
            };
            let written = store.diff_with(&id, &base, options, &mut writer);
            let last = match written.map_err(io::Error::from) {
                Ok(_) => writer.flush().map(|()| Piece::End),
                Err(error) => Err(error),
            };
            // Nobody is left to tell when the stream was dropped.
            let _ = writer
                .sender
                .blocking_send(last.unwrap_or_else(Piece::Failed));
        });
        Ok(DiffStream {
            receiver,
            piece: Vec::new(),
            taken: 0,
            ended: false,
        })
    }

    async fn changes(&self, id: &LayerId, base: &Base) -> Result<Vec<Change>, Error> {
        let (id, base) = (id.clone(), base.clone());
        self.run(move |store| store.changes(&id, &base)).await
    }

    async fn size(&self, id: &LayerId, base: &Base) -> Result<LayerSize, Error> {
        let (id, base) = (id.clone(), base.clone());
        self.run(move |store| store.size(&id, &base)).await
    }

    async fn mount(&self, id: &LayerId, request: &MountRequest) -> Result<PathBuf, Error> {
        let (id, request) = (id.clone(), request.clone());
        self.run(move |store| store.mount(&id, &request)).await
    }

    async fn unmount(&self, id: &LayerId, mode: UnmountMode) -> Result<u64, Error> {
        let id = id.clone();
        self.run(move |store| store.unmount(&id, mode)).await
    }

    async fn unmount_all(&self, mode: UnmountMode) -> Result<Vec<LayerId>, Error> {
        self.run(move |store| store.unmount_all(mode)).await
    }

    async fn remove(&self, id: &LayerId, force: bool) -> Result<(), Error> {
        let id = id.clone();
        self.run(move |store| store.remove(&id, force)).await?;
        let store = Arc::clone(&self.store);
        // What it cannot free now, the next reclaim does.
        drop(tokio::task::spawn_blocking(move || store.reclaim()));
        Ok(())
    }

    async fn reclaim(&self) -> Result<Reclaimed, Error> {
        self.run(blocking::Overlay2::reclaim).await
    }

    async fn check(&self) -> Result<CheckReport, Error> {
        self.run(blocking::Overlay2::check).await
    }

    async fn repair(&self, options: UpkeepOptions) -> Result<Repaired, Error> {
        self.run(move |store| store.repair(options)).await
    }

    async fn gc(&self, options: UpkeepOptions) -> Result<Garbage, Error> {
        self.run(move |store| store.gc(options)).await
    }

    async fn contains(&self, id: &LayerId) -> Result<bool, Error> {
        let id = id.clone();
        self.run(move |store| store.contains(&id)).await
    }

    async fn layers(&self) -> Result<LayerList, Error> {
        self.run(blocking::Overlay2::layers).await
    }

    async fn inspect(&self, id: &LayerId) -> Result<LayerInfo, Error> {
        let id = id.clone();
        self.run(move |store| store.inspect(&id)).await
    }

    async fn quota(&self, id: &LayerId) -> Result<Option<LayerQuota>, Error> {
        let id = id.clone();
        self.run(move |store| store.quota(&id)).await
    }

    async fn set_limits(&self, id: &LayerId, limits: Limits) -> Result<(), Error> {
        let id = id.clone();
        self.run(move |store| store.set_limits(&id, limits)).await
    }

    async fn status(&self) -> Result<Status, Error> {
        self.run(blocking::Overlay2::status).await
    }
}

/// Part of an archive. The end is said, so that a sender that just vanishes is no end.
enum Piece {
    Data(Vec<u8>),
    End,
    Failed(io::Error),
}

/// The blocking end of an archive that comes in.
struct PieceReader {
    receiver: mpsc::Receiver<Piece>,
    piece: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl PieceReader {
    fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self {
            receiver,
            piece: Vec::new(),
            taken: 0,
            ended: false,
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(piece)) => (self.piece, self.taken) = (piece, 0),
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(io::Error::other("the source of the archive was dropped")),
            }
        }
        let len = buffer.len().min(self.piece.len() - self.taken);
        buffer[..len].copy_from_slice(&self.piece[self.taken..self.taken + len]);
        self.taken += len;
        Ok(len)
    }
}

/// The blocking end of an archive that goes out.
struct PieceWriter {
    sender: mpsc::Sender<Piece>,
    piece: Vec<u8>,
}

impl Write for PieceWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(buffer);
        if self.piece.len() >= PIECE_LEN {
            self.flush()?;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        let dropped = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the archive");
        self.sender
            .blocking_send(Piece::Data(piece))
            .map_err(dropped)
    }
}

/// An archive that [`Driver::diff`] writes. Dropping it ends the work.
pub struct DiffStream {
    receiver: mpsc::Receiver<Piece>,
    piece: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl fmt::Debug for DiffStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiffStream")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for DiffStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.taken == self.piece.len() && !self.ended {
            match std::task::ready!(self.receiver.poll_recv(context)) {
                Some(Piece::Data(piece)) => (self.piece, self.taken) = (piece, 0),
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Poll::Ready(Err(error)),
                None => {
                    let error = io::Error::other("writing the archive stopped unexpectedly");
                    return Poll::Ready(Err(error));
                }
            }
        }
        let len = buffer.remaining().min(self.piece.len() - self.taken);
        let start = self.taken;
        buffer.put_slice(&self.piece[start..start + len]);
        self.taken += len;
        Poll::Ready(Ok(()))
    }
}
