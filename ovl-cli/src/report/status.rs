use ovl_driver::Status;
use ovl_quota::Bytes;
use serde_json::json;

use super::{Report, id_map, text};
use crate::fail::Failure;

impl Report {
    pub(crate) fn status(&self, status: &Status) -> Result<(), Failure> {
        let strategies: Vec<&str> = status.strategies.iter().map(|one| one.as_str()).collect();
        let quota = match &status.quota {
            Ok(enforcement) => enforcement.to_string(),
            Err(reason) => reason.clone(),
        };
        let namespace = match (&self.namespace, status.user_namespace) {
            (Some(refused), _) => refused,
            (None, true) => "the program runs in one",
            (None, false) => "the program was started by root outside of them",
        };
        let mounting: Vec<_> = status
            .mounting
            .iter()
            .map(|(strategy, answer)| {
                json!({ "strategy": strategy.as_str(), "works": answer.yes, "reason": answer.reason })
            })
            .collect();
        let value = || {
            json!({
                "driver": "overlay2",
                "home": text(&status.home),
                "backing_filesystem": status.backing_fs.name(),
                "supports_d_type": status.d_type.yes,
                "using_metacopy": status.metacopy.yes,
                "native_overlay_diff": status.native_diff.yes,
                "userxattr": status.userxattr.yes,
                "docker_can_use": status.docker.yes,
                "keeps_owners": status.owners.yes,
                "makes_devices": status.devices.yes,
                "takes_redirects": status.redirects.yes,
                "private_mounts": status.private_mounts.yes,
                "reasons": {
                    "docker_can_use": status.docker.reason,
                    "supports_d_type": status.d_type.reason,
                    "using_metacopy": status.metacopy.reason,
                    "native_overlay_diff": status.native_diff.reason,
                    "userxattr": status.userxattr.reason,
                    "keeps_owners": status.owners.reason,
                    "makes_devices": status.devices.reason,
                    "takes_redirects": status.redirects.reason,
                    "private_mounts": status.private_mounts.reason,
                    "user_namespace": namespace,
                },
                "mounting": mounting,
                "xattrs": status.xattrs.as_str(),
                "max_depth": status.settings.max_depth,
                "uid_map": id_map(&status.settings.id_maps.uids),
                "gid_map": id_map(&status.settings.id_maps.gids),
                "durability": status.settings.durability.to_string(),
                "strategies": strategies,
                "data_limit": status.features.data_limit.bytes(),
                "index": status.features.index,
                "redirect_dir": status.features.redirect_dir,
                "metacopy": status.features.metacopy,
                "user_namespace": status.user_namespace,
                "quota": quota,
                "default_size": status.settings.size,
                "project_base": status.settings.project_base,
            })
        };
        let lines = || {
            let mut lines = String::new();
            let mut line = |key: &str, value: &str| lines += &format!("{key:20} {value}\n");
            line("Driver", "overlay2");
            line("Home", &text(&status.home));
            for (key, value) in status.docker_pairs() {
                line(key, value);
            }
            line("Private attributes", status.xattrs.prefix());
            line(
                "Depth",
                &format!("at most {} layers below a layer", status.settings.max_depth),
            );
            if !status.docker.yes {
                line("Not for Docker", status.docker.reason);
            }
            line("Durability", &status.settings.durability.to_string());
            let maps = &status.settings.id_maps;
            for (key, map) in [("User id map", &maps.uids), ("Group id map", &maps.gids)] {
                if let Some(map) = id_map(map) {
                    line(key, &map);
                }
            }
            line("Mount strategies", &strategies.join(", "));
            line(
                "Mount data",
                &format!("at most {} bytes", status.features.data_limit.bytes()),
            );
            for (strategy, answer) in status.mounting.iter().filter(|(_, answer)| !answer.yes) {
                line(
                    "Does not mount by",
                    &format!("{strategy}: {}", answer.reason),
                );
            }
            for (key, yes, reason) in [
                (
                    "User namespace",
                    status.user_namespace && self.namespace.is_none(),
                    namespace,
                ),
                ("Keeps owners", status.owners.yes, status.owners.reason),
                ("Makes devices", status.devices.yes, status.devices.reason),
                (
                    "Takes redirects",
                    status.redirects.yes,
                    status.redirects.reason,
                ),
                (
                    "Private mounts",
                    status.private_mounts.yes,
                    status.private_mounts.reason,
                ),
            ] {
                let word = if yes { "yes" } else { "no" };
                line(key, &format!("{word}: {reason}"));
            }
            line("Project quota", &quota);
            let size = status.settings.size.map(Bytes::new);
            line(
                "Default size",
                &size.map_or("none".to_owned(), |size| size.to_string()),
            );
            lines
        };
        self.print(value, lines)
    }
}
