//! Requests to the hub: where they may go, what they carry, and how long they may take.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::ALLOW_HTTP;
use crate::{DownloadError, Hub};

/// The hub that is used if none is named.
const HUGGING_FACE: &str = "https://huggingface.co";
/// The largest answer of the hub's interface that is read, in bytes.
const LARGEST_ANSWER: u64 = 16 << 20;
/// The time for a whole answer of the hub's interface, in time-outs.
const ANSWER_TIMEOUTS: u32 = 6;
/// The redirects that one request may follow.
const MAX_REDIRECTS: usize = 10;

/// A method of HTTP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
}

/// A client of one hub.
pub(crate) struct Client<'a> {
    hub: &'a Hub,
    endpoint: Uri,
    agent: Agent,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`DownloadError::Endpoint`], if the hub's address is none or is not allowed.
    pub(crate) fn new(hub: &'a Hub) -> Result<Self, DownloadError> {
        let text = hub.endpoint.as_deref().unwrap_or(HUGGING_FACE);
        let text = text.trim_end_matches('/');
        let invalid = |problem: &str| DownloadError::Endpoint {
            endpoint: text.to_owned(),
            problem: problem.to_owned(),
        };
        let endpoint: Uri = text.parse().map_err(|_| invalid("is not a URL"))?;
        match endpoint.scheme_str() {
            _ if endpoint
                .authority()
                .is_none_or(|it| it.as_str().contains('@')) =>
            {
                return Err(invalid("is not of the form https://host"));
            }
            Some("https") => {}
            Some("http") if hub.allow_http => {}
            Some("http") => {
                return Err(invalid(&format!(
                    "is not encrypted: use https, or set {ALLOW_HTTP}=1"
                )));
            }
            _ => return Err(invalid("is not of the form https://host")),
        }
        let is_encrypted = endpoint.scheme_str() == Some("https");
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(is_encrypted)
            // Redirects are followed here, where each address is checked.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("epiphyte/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls_config()?)
            .timeout_resolve(Some(hub.timeout))
            .timeout_connect(Some(hub.timeout))
            .timeout_recv_response(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .timeout_per_write(Some(hub.timeout));
        Ok(Self {
            hub,
            endpoint,
            agent: config.build().new_agent(),
        })
    }

    /// The address of something on the hub.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint.to_string().trim_end_matches('/'))
    }

    /// Asks for a JSON answer of the hub's interface; returns it and the address of its next page.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        url: &str,
    ) -> Result<(T, Option<String>), DownloadError> {
        let mut response = self.request(Method::Get, url, None)?;
        expect(&response, url, StatusCode::OK)?;
        let mut bytes = Vec::new();
        let body = response.body_mut().as_reader();
        let read = body.take(LARGEST_ANSWER + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.failed(url, error.into()))?;
        let malformed = |problem: String| DownloadError::Malformed {
            url: url.to_owned(),
            problem,
        };
        if bytes.len() as u64 > LARGEST_ANSWER {
            return Err(malformed(format!("more than {LARGEST_ANSWER} bytes")));
        }
        let answer = serde_json::from_slice(&bytes)
            .map_err(|error| malformed(format!("not an answer of a hub: {error}")))?;
        let next = next_page(response.headers()).map(|next| self.follow(url, next));
        Ok((answer, next.transpose()?))
    }

    /// Sends a request and follows redirects; `from` asks for the bytes from there on. Any status
    /// is an answer. A `HEAD` request follows redirects on the hub itself alone, because its
    /// answer is in the headers of the hub.
    pub(crate) fn request(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
    ) -> Result<Response<Body>, DownloadError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(method, &url, from)?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION);
            let location = location.and_then(|it| it.to_str().ok()).unwrap_or_default();
            let next = self.follow(&url, location)?;
            if method == Method::Head && !self.is_own(&next) {
                return Ok(response);
            }
            url = next;
        }
        Err(DownloadError::Malformed {
            url: shown(&url),
            problem: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }

    fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
    ) -> Result<Response<Body>, DownloadError> {
        let mut request = match method {
            Method::Get => self.agent.get(url),
            Method::Head => self.agent.head(url),
        };
        // A compressed answer has another length than the file.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.hub.token
            && self.may_see_token(url)
        {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let is_answer = !url.contains("/resolve/");
        if is_answer {
            let total = self.hub.timeout * ANSWER_TIMEOUTS;
            request = request.config().timeout_per_call(Some(total)).build();
        }
        request.call().map_err(|error| self.failed(url, error))
    }

    /// The address that a redirect or a next page leads to: absolute, or a path on the same host.
    fn follow(&self, url: &str, location: &str) -> Result<String, DownloadError> {
        let refused = |problem: &str| DownloadError::Malformed {
            url: shown(url),
            problem: format!("leads to `{}`, {problem}", shown(location).escape_debug()),
        };
        let next = if location.starts_with('/') && !location.starts_with("//") {
            let uri: Uri = url.parse().map_err(|_| refused("which is no address"))?;
            let scheme = uri.scheme_str().unwrap_or("https");
            let host = uri.authority().map_or("", |it| it.as_str());
            format!("{scheme}://{host}{location}")
        } else {
            location.to_owned()
        };
        let uri: Uri = next.parse().map_err(|_| refused("which is no address"))?;
        let is_allowed = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => self.endpoint.scheme_str() == Some("http"),
            _ => false,
        };
        if uri.host().is_none() || !is_allowed {
            return Err(refused("which is not https"));
        }
        Ok(next)
    }

    /// Whether an address is of the hub itself: scheme, host and port.
    fn is_own(&self, url: &str) -> bool {
        url.parse().is_ok_and(|uri: Uri| {
            (uri.scheme(), uri.host(), uri.port_u16())
                == (
                    self.endpoint.scheme(),
                    self.endpoint.host(),
                    self.endpoint.port_u16(),
                )
        })
    }

    /// Whether the token may be sent to an address: to the hub itself, over https.
    fn may_see_token(&self, url: &str) -> bool {
        self.endpoint.scheme_str() == Some("https") && self.is_own(url)
    }

    /// The error of a request or of reading its answer.
    pub(crate) fn failed(&self, url: &str, error: ureq::Error) -> DownloadError {
        let is_timeout = match &error {
            ureq::Error::Timeout(_) => true,
            ureq::Error::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        };
        if is_timeout {
            return DownloadError::Stalled {
                url: shown(url),
                seconds: self.hub.timeout,
            };
        }
        DownloadError::Connection {
            url: shown(url),
            problem: error.to_string(),
        }
    }
}

/// # Errors
/// [`DownloadError::Status`], if a response has another status.
pub(crate) fn expect(
    response: &Response<Body>,
    url: &str,
    status: StatusCode,
) -> Result<(), DownloadError> {
    if response.status() == status {
        return Ok(());
    }
    Err(DownloadError::Status {
        url: shown(url),
        status: response.status().as_u16(),
    })
}

/// An address without its query, which may hold a signature.
pub(crate) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// The address of the next page, which the header `Link` has.
fn next_page(headers: &HeaderMap) -> Option<&str> {
    let links = headers.get(header::LINK)?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    next.split_once('<')?.1.split_once('>').map(|(url, _)| url)
}

/// The certificates to trust: Mozilla's list, or those of the file that `SSL_CERT_FILE` names, such
/// as a company's own.
fn tls_config() -> Result<TlsConfig, DownloadError> {
    let Some(path) = env::var_os("SSL_CERT_FILE") else {
        return Ok(TlsConfig::default());
    };
    let path = path.into();
    let failed = |path, source| DownloadError::Cache {
        action: "read the certificates in",
        path,
        source,
    };
    let pem = match fs::read(&path) {
        Ok(pem) => pem,
        Err(source) => return Err(failed(path, source)),
    };
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(failed(path, io::Error::other(error))),
        }
    }
    let roots = RootCerts::Specific(Arc::new(certificates));
    Ok(TlsConfig::builder().root_certs(roots).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(endpoint: &str) -> Hub {
        Hub {
            endpoint: Some(endpoint.to_owned()),
            ..Hub::at("unused".as_ref())
        }
    }

    #[test]
    fn an_endpoint_is_https_unless_told_otherwise() {
        assert!(Client::new(&hub("https://hub.example/")).is_ok());
        let error = Client::new(&hub("http://hub.example")).err().unwrap();
        let text = error.to_string();
        assert!(
            text.contains("`http://hub.example` is not encrypted"),
            "{text}"
        );
        assert!(text.contains("EPIPHYTE_HUB_ALLOW_HTTP=1"), "{text}");
        let allowed = Hub {
            allow_http: true,
            ..hub("http://hub.example")
        };
        assert!(Client::new(&allowed).is_ok());
        for endpoint in ["ftp://hub.example", "hub", "", "https://", "https://a@b"] {
            assert!(Client::new(&hub(endpoint)).is_err(), "{endpoint}");
        }
    }

    #[test]
    fn the_token_is_for_the_hub_itself_over_https() {
        let https = hub("https://hub.example");
        let client = Client::new(&https).unwrap();
        assert!(client.may_see_token("https://hub.example/a/b"));
        for other in [
            "https://cdn.example/a",
            "https://hub.example:8443/a",
            "https://hub.example.evil.example/a",
            "http://hub.example/a",
        ] {
            assert!(!client.may_see_token(other), "{other}");
        }
        let http = Hub {
            allow_http: true,
            ..hub("http://hub.example")
        };
        let client = Client::new(&http).unwrap();
        assert!(!client.may_see_token("http://hub.example/a"));
    }

    #[test]
    fn a_redirect_leads_to_https() {
        let https = hub("https://hub.example");
        let client = Client::new(&https).unwrap();
        let follow = |to| client.follow("https://hub.example/a?b=c", to).ok();
        assert_eq!(follow("/x/y").as_deref(), Some("https://hub.example/x/y"));
        let other = "https://cdn.example/x?signature=1";
        assert_eq!(follow(other).as_deref(), Some(other));
        for refused in [
            "http://hub.example/x",
            "//evil.example/x",
            "x/y",
            "",
            "file:///etc",
        ] {
            assert_eq!(follow(refused), None, "{refused}");
        }
        let error = client.follow("https://hub.example/a?secret", "http://b/\u{1b}[2J?secret");
        let text = error.unwrap_err().to_string();
        assert!(
            !text.contains("secret") && !text.contains('\u{1b}'),
            "{text}"
        );
    }

    #[test]
    fn the_next_page_is_the_link_that_says_so() {
        let mut headers = HeaderMap::new();
        assert_eq!(next_page(&headers), None);
        let links = "<https://a/1>; rel=\"prev\", <https://a/3?cursor=x>; rel=\"next\"";
        headers.insert(header::LINK, links.parse().unwrap());
        assert_eq!(next_page(&headers), Some("https://a/3?cursor=x"));
    }
}
