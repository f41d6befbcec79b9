//! The image service, over the image store.

use async_trait::async_trait;
use cri::v1::*;
use cri::{Error, ImageService, Result};

use crate::files;
use crate::sandbox::{blocking, text};
use crate::state::Runtime;

fn failed(error: image::Error) -> Error {
    match error {
        image::Error::NotFound { .. } => Error::not_found(error),
        image::Error::InvalidName { .. } => Error::invalid_argument(error),
        other => Error::unknown(other),
    }
}

impl Runtime {
    fn shown(&self, image: image::Image) -> Image {
        let user = self.images.config(&image.id).ok().and_then(|c| c.config().as_ref().and_then(|c| c.user().clone()));
        let user = user.unwrap_or_default();
        let user = user.split(':').next().unwrap_or_default();
        // A number and a name are different fields; no user at all is root.
        let (uid, username) = match (user.is_empty(), user.parse::<i64>()) {
            (true, _) => (Some(Int64Value { value: 0 }), String::new()),
            (_, Ok(value)) => (Some(Int64Value { value }), String::new()),
            (_, Err(_)) => (None, user.to_owned()),
        };
        Image {
            spec: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
            id: image.id,
            repo_tags: image.tags,
            repo_digests: image.digests,
            size: image.size,
            uid,
            username,
            pinned: image.pinned,
        }
    }

    fn credentials(auth: Option<AuthConfig>) -> Result<image::Auth> {
        use image::Auth;
        let Some(auth) = auth else { return Ok(Auth::Anonymous) };
        if !auth.registry_token.is_empty() {
            return Ok(Auth::Token(auth.registry_token));
        }
        if !auth.identity_token.is_empty() {
            return Ok(Auth::Basic { user: String::new(), password: auth.identity_token });
        }
        if !auth.username.is_empty() {
            return Ok(Auth::Basic { user: auth.username, password: auth.password });
        }
        if auth.auth.is_empty() {
            return Ok(Auth::Anonymous);
        }
        let plain = decode_base64(&auth.auth).and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = plain.as_deref().and_then(|p| p.trim_matches('\0').split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned())));
        let (user, password) = pair.ok_or_else(|| Error::invalid_argument("failed to parse auth config: invalid auth"))?;
        Ok(Auth::Basic { user, password })
    }
}

/// Standard base64; `None` when it is not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim().trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[async_trait]
impl ImageService for Runtime {
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse> {
        let name = request.filter.and_then(|f| f.image).map(|i| i.image).unwrap_or_default();
        let images = match name.as_str() {
            "" => self.images.list().map_err(failed)?,
            name => self.images.get(name).map_err(failed)?.into_iter().collect(),
        };
        Ok(ListImagesResponse { images: images.into_iter().map(|i| self.shown(i)).collect() })
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse> {
        let name = request.image.unwrap_or_default().image;
        let image = self.images.get(&name).map_err(failed)?.map(|i| self.shown(i));
        Ok(ImageStatusResponse { image, ..Default::default() })
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse> {
        let name = request.image.unwrap_or_default().image;
        let auth = Self::credentials(request.auth)?;
        let image = self.images.pull(&name, &auth, &self.config.registries, |_| {}).await.map_err(failed)?;
        Ok(PullImageResponse { image_ref: image.id })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse> {
        let (name, images) = (request.image.unwrap_or_default().image, self.images.clone());
        blocking(move || images.remove(&name).map_err(text)).await?;
        Ok(RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse> {
        let (images, root) = (self.images.clone(), self.config.root.clone());
        blocking(move || {
            let filesystem = FilesystemUsage {
                timestamp: files::now(),
                fs_id: Some(FilesystemIdentifier { mountpoint: images.root().display().to_string() }),
                used_bytes: Some(UInt64Value { value: images.used_bytes().map_err(text)? }),
                inodes_used: None,
            };
            Ok(ImageFsInfoResponse { image_filesystems: vec![filesystem], container_filesystems: vec![crate::stats::usage_of(&root)] })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_decodes() {
        assert_eq!(super::decode_base64("dXNlcjpwYXNz").unwrap(), b"user:pass");
        assert_eq!(super::decode_base64("YQ==").unwrap(), b"a");
        assert!(super::decode_base64("a*").is_none());
    }
}
