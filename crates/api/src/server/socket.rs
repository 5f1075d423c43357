//! The unix socket: who may connect, what was there before, and the end.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use axum::Router;
use nix::unistd::{Gid, Group};
use tokio::{net::UnixListener, sync::oneshot};

use crate::DEFAULT_SOCKET;

/// Longest path of a socket, bytes: the kernel's 108 with the zero at the end.
const MAX_PATH: usize = 107;

/// Where to listen and who may connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SocketOptions {
    /// Path of the socket; its directory is made if it is missing.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Group by name or number; the process's own if not given.
    pub group: Option<String>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { path: DEFAULT_SOCKET.into(), mode: 0o660, group: None }
    }
}

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("another agent answers on {}: stop it first, or choose another path", .0.display())]
    Busy(PathBuf),
    /// Something else is there.
    #[error("{} is there and is no socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The path is too long for the kernel.
    #[error("{}: a socket's path may have {MAX_PATH} bytes", .0.display())]
    TooLong(PathBuf),
    /// There is no such group.
    #[error("group {0:?} of the socket does not exist: create it with `groupadd {0}`, or choose another")]
    Group(String),
    /// The system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket. Its file goes when serving ends, unless another process has put its own there.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket, known by its inode; removed when dropped.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Listens. A socket that nobody listens on any more is replaced, in one step and with its mode and
    /// group already set, so that no client sees a gap or a socket that it may not use.
    ///
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When somebody listens there, something else is there, the group does not exist or the system refuses.
    pub fn bind(options: &SocketOptions) -> Result<Self, SocketError> {
        let path = &options.path;
        if path.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong(path.clone()));
        }
        let group = options.group.as_deref().map(group_id).transpose()?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(directory) = directory {
            fs::create_dir_all(directory).map_err(failed("create the directory", directory))?;
        }
        refuse_what_is_in_use(path)?;

        let fresh = directory.unwrap_or(Path::new(".")).join(format!(".s{}", process::id()));
        remove(&fresh).map_err(failed("remove", &fresh))?;
        let made = listen(&fresh, options.mode, group).and_then(|listener| {
            let file = SocketFile::of(&fresh, path)?;
            fs::rename(&fresh, path).map_err(failed("put the socket at", path))?;
            Ok(Self { listener, file })
        });
        if made.is_err() {
            let _ = remove(&fresh);
        }
        made
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

fn listen(path: &Path, mode: u32, group: Option<Gid>) -> Result<UnixListener, SocketError> {
    let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
    if group.is_some() {
        let group = group.map(Gid::as_raw);
        chown(path, None, group).map_err(failed("set the group of", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))?;
    Ok(listener)
}

fn group_id(name: &str) -> Result<Gid, SocketError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(SocketError::Group(name.to_owned())),
    }
}

fn refuse_what_is_in_use(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Busy(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => Err(failed("ask who listens on", path)(error)),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Io { action, path: path.to_owned(), source }
}

impl SocketFile {
    /// The file that is at `now` and will be at `path`.
    fn of(now: &Path, path: &Path) -> Result<Self, SocketError> {
        let metadata = fs::symlink_metadata(now).map_err(failed("look at", now))?;
        Ok(Self { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves until `shutdown` is ready, then lets requests under way end for `grace` and removes the socket.
///
/// Streams of events end when their history is closed; those that do not are cut after `grace`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    socket: Socket,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> io::Result<()> {
    let Socket { listener, file } = socket;
    let (ended, ending) = oneshot::channel();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        let _ = ended.send(());
    });
    let too_late = async {
        if ending.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(grace).await;
    };
    let result = tokio::select! {
        result = server => result,
        () = too_late => Ok(()),
    };
    drop(file);
    result
}
