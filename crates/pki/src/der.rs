//! The few DER forms that the X.509 crates do not write: key wrapping and names with repeated
//! attribute types.

/// One DER element: tag, length, content.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let n = content.len();
    if n < 0x80 {
        out.push(n as u8);
    } else {
        let bytes: Vec<u8> = n.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

/// A SEQUENCE of already encoded elements.
pub(crate) fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// One name attribute (`oid` is the encoded object identifier) as an RDN set of one, UTF8String.
pub(crate) fn rdn(oid: &[u8], value: &str) -> Vec<u8> {
    let attribute = seq(&[&tlv(0x06, oid), &tlv(0x0c, value.as_bytes())]);
    tlv(0x31, &attribute)
}

/// An X.501 name of organisations followed by the common name.
pub(crate) fn name(cn: &str, orgs: &[String]) -> Vec<u8> {
    let mut rdns: Vec<Vec<u8>> = orgs.iter().map(|o| rdn(&[0x55, 0x04, 0x0a], o)).collect();
    if !cn.is_empty() {
        rdns.push(rdn(&[0x55, 0x04, 0x03], cn));
    }
    tlv(0x30, &rdns.concat())
}

const VERSION_0: &[u8] = &[0x02, 0x01, 0x00];

/// rsaEncryption, NULL.
const RSA: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// Wraps a PKCS #1 RSA key as PKCS #8.
pub(crate) fn pkcs8_from_rsa(pkcs1: &[u8]) -> Vec<u8> {
    seq(&[VERSION_0, RSA, &tlv(0x04, pkcs1)])
}

/// Wraps a PKCS #1 RSA public key as a SubjectPublicKeyInfo.
pub(crate) fn spki_from_rsa(pkcs1: &[u8]) -> Vec<u8> {
    seq(&[RSA, &tlv(0x03, &[&[0u8][..], pkcs1].concat())])
}

/// Wraps a SEC 1 EC key as PKCS #8. The curve is told by the length of the private scalar.
pub(crate) fn pkcs8_from_ec(sec1: &[u8]) -> Option<Vec<u8>> {
    // SEQUENCE { INTEGER 1, OCTET STRING scalar, … }
    let body = content(sec1)?;
    let rest = body.strip_prefix(&[0x02, 0x01, 0x01, 0x04])?;
    let curve: &[u8] = match *rest.first()? {
        32 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        48 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        _ => return None,
    };
    let public_key = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    Some(seq(&[VERSION_0, &seq(&[&public_key, curve]), &tlv(0x04, sec1)]))
}

fn content(element: &[u8]) -> Option<&[u8]> {
    let (&first, rest) = element.get(1..)?.split_first()?;
    if first < 0x80 { Some(rest) } else { rest.get((first & 0x7f) as usize..) }
}
