//! `Accept`: whether a scan is answered as a page or as a stream.

use crate::problem::Problem;
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};

/// Whether the client would rather have a stream; 406 where it takes neither that nor JSON.
pub(super) fn accepts_stream(headers: &HeaderMap) -> Result<bool, Problem> {
    // For each form: how much it is wanted (in thousandths), and how exactly it was named.
    let (mut page, mut stream) = ((0u32, -1), (0u32, -1));
    let mut any = false;
    for value in headers.get_all(ACCEPT) {
        for part in
            value.to_str().unwrap_or_default().split(',').filter(|part| !part.trim().is_empty())
        {
            any = true;
            let mut pieces = part.split(';').map(str::trim);
            let media = pieces.next().unwrap_or_default().to_ascii_lowercase();
            let quality = pieces
                .find_map(|piece| piece.strip_prefix("q=").or_else(|| piece.strip_prefix("Q=")));
            let quality = quality.map_or(1.0, |q| q.parse::<f32>().unwrap_or(1.0).clamp(0.0, 1.0));
            let quality = (quality * 1000.0) as u32;
            let (for_page, for_stream) = match media.as_str() {
                "*/*" => (0, 0),
                "application/*" => (1, 1),
                "application/json" => (2, -2),
                "application/x-ndjson" | "application/ndjson" => (-2, 2),
                _ => (-2, -2),
            };
            for (form, exactness) in [(&mut page, for_page), (&mut stream, for_stream)] {
                if exactness > form.1 {
                    *form = (quality, exactness);
                }
            }
        }
    }
    if any && page.0 == 0 && stream.0 == 0 {
        let detail = "Accept: a scan is there as application/json (a page) or application/x-ndjson \
                      (a stream)";
        return Err(Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "not_acceptable",
            "not acceptable",
            detail,
        ));
    }
    Ok(any && stream > page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;

    #[test]
    fn the_form_that_is_wanted_most_is_given() {
        let form = |accept: &str| {
            accepts_stream(&HeaderMap::from_iter([(
                ACCEPT,
                HeaderValue::from_str(accept).unwrap(),
            )]))
        };
        assert!(!accepts_stream(&HeaderMap::new()).unwrap());
        for page in [
            "*/*",
            "application/json",
            "application/*",
            "text/html, */*;q=0.1",
            "application/json, application/x-ndjson",
        ] {
            assert!(!form(page).unwrap(), "{page}");
        }
        for stream in [
            "application/x-ndjson",
            "application/x-ndjson, */*",
            "application/json;q=0.5, application/x-ndjson",
        ] {
            assert!(form(stream).unwrap(), "{stream}");
        }
        for neither in ["text/html", "application/xml", "application/json;q=0", "*/*;q=0"] {
            assert_eq!(form(neither).unwrap_err().members().status, 406, "{neither}");
        }
    }
}
