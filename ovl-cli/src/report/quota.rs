use ovl_driver::LayerQuota;
use ovl_quota::Bytes;
use serde_json::{Value, json};

use super::Report;
use crate::fail::Failure;

impl Report {
    pub(crate) fn quota(&self, id: &str, found: Option<&LayerQuota>) -> Result<(), Failure> {
        let value = || json!({ "id": id, "quota": found.map(self::json) });
        let lines = || {
            let Some(found) = found else {
                return "project       none\n".to_owned();
            };
            let limit =
                |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
            let mut lines = format!("project       {}\n", found.project);
            match &found.usage {
                Ok(usage) => {
                    let bytes = usage.limits.bytes.map(Bytes::get);
                    lines += &format!("bytes         {}\n", usage.bytes.get());
                    lines += &format!("bytes limit   {}\n", limit(bytes));
                    lines += &format!("inodes        {}\n", usage.inodes);
                    lines += &format!("inodes limit  {}\n", limit(usage.limits.inodes));
                }
                Err(reason) => lines += &format!("bytes         unknown: {reason}\n"),
            }
            lines
        };
        self.print(value, lines)
    }
}

pub(super) fn json(quota: &LayerQuota) -> Value {
    let usage = quota.usage.as_ref();
    json!({
        "project": quota.project.get(),
        "bytes": usage.ok().map(|usage| usage.bytes.get()),
        "bytes_limit": usage.ok().and_then(|usage| usage.limits.bytes).map(Bytes::get),
        "inodes": usage.ok().map(|usage| usage.inodes),
        "inodes_limit": usage.ok().and_then(|usage| usage.limits.inodes),
        "problem": usage.err(),
    })
}
