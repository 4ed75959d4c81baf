//! Addresses: the target of a redirect, and whether it still is the hub.

use url::Url;

use super::hub::Failure;

/// Parses an address. Requests use the parsed address, so that checks and requests agree.
pub(super) fn read(address: &str) -> Result<Url, Failure> {
    Url::parse(address).map_err(|e| Failure::Final(format!("{address}: not an address ({e})")))
}

/// Returns the target of a redirect from `from` to `to` by RFC 3986. `to` may be relative, and its query may contain
/// other addresses. The fragment is dropped, because servers do not see it.
pub(super) fn joined(from: &Url, to: &str) -> Result<Url, Failure> {
    let mut url = from.join(to).map_err(|e| Failure::Final(format!("{from}: a redirect to `{to}` ({e})")))?;
    url.set_fragment(None);
    Ok(url)
}

/// Returns whether two addresses have the same scheme, host and port.
pub(super) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin().is_tuple() && one.origin() == other.origin()
}

/// Returns whether an address is of this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_redirects_of_any_query_are_those_of_rfc_3986() {
        let from = read("https://a.b:1/c/d/e?f#g").unwrap();
        for (to, expected) in [
            ("https://x/y", "https://x/y"),
            ("//x/y?c=http://d/e", "https://x/y?c=http://d/e"),
            ("/y?z", "https://a.b:1/y?z"),
            ("/y?to=https://x/y", "https://a.b:1/y?to=https://x/y"),
            ("y", "https://a.b:1/c/d/y"),
            ("./y", "https://a.b:1/c/d/y"),
            ("../y?c=http://d/e", "https://a.b:1/c/y?c=http://d/e"),
            ("../../../y", "https://a.b:1/y"),
            ("?x", "https://a.b:1/c/d/e?x"),
            ("?x=http://d/e", "https://a.b:1/c/d/e?x=http://d/e"),
            ("?x=//d/../e", "https://a.b:1/c/d/e?x=//d/../e"),
            ("#x", "https://a.b:1/c/d/e?f"),
            ("y#http://d/e", "https://a.b:1/c/d/y"),
            ("", "https://a.b:1/c/d/e?f"),
            ("y:z/../w", "y:z/../w"),
            ("./y:z", "https://a.b:1/c/d/y:z"),
            ("file:///etc/passwd", "file:///etc/passwd"),
        ] {
            assert_eq!(joined(&from, to).unwrap().as_str(), expected, "{to}");
        }
        // the examples of RFC 3986, section 5.4
        let from = read("http://a/b/c/d;p?q").unwrap();
        for (to, expected) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("g?y#s", "http://a/b/c/g?y"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("g;x=1/../y", "http://a/b/c/y"),
        ] {
            assert_eq!(joined(&from, to).unwrap().as_str(), expected, "{to}");
        }
        assert!(joined(&from, "http://[x/").is_err() && joined(&from, "//").is_err());
    }

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        let hub = read("https://hub.example/prefix").unwrap();
        for (address, same) in [
            ("https://hub.example:443/x", true),
            ("https://HUB.example?x", true),
            ("http://hub.example/x", false),
            ("https://hub.example:444/x", false),
            ("https://hub.example.evil/x", false),
            ("https://hub.example@evil/x", false),
            ("https://evil/https://hub.example", false),
            ("https:\\\\evil\\hub.example", false),
            ("file:///x", false),
        ] {
            assert_eq!(is_same_origin(&hub, &read(address).unwrap()), same, "{address}");
        }
        let file = read("file:///x").unwrap();
        assert!(!is_same_origin(&file, &file));
        let loopback = |address: &str| is_loopback(&read(address).unwrap());
        assert!(loopback("http://127.0.0.1:80/x") && loopback("http://[::1]/") && loopback("http://localhost:8"));
        assert!(!loopback("http://127.0.0.1.evil.example") && !loopback("http://localhost.evil"));
    }
}
