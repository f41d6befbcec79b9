//! New RSA keys: two random primes that are far enough apart (FIPS 186-5, A.1.3), tested by Miller and Rabin. Only made
//! here: signing and verifying are ring's.

use num_bigint::BigUint;
use ring::rand::{SecureRandom, SystemRandom};

use crate::{Error, Result, der};

const EXPONENT: u32 = 65537;
/// Rounds of the test, as Go's: a composite passes one by a chance of less than a quarter.
const ROUNDS: usize = 20;

/// A new key of so many bits, as PKCS #1 in DER.
pub(crate) fn generate(bits: u64) -> Result<Vec<u8>> {
    let small = small_primes();
    let e = BigUint::from(EXPONENT);
    let one = BigUint::from(1u32);
    loop {
        let (a, b) = (prime(bits / 2, &small)?, prime(bits / 2, &small)?);
        let (p, q) = if a > b { (a, b) } else { (b, a) };
        if (&p - &q).bits() <= bits / 2 - 100 {
            continue;
        }
        let (p1, q1) = (&p - &one, &q - &one);
        // Both primes less one have no factor in common with the exponent, so there are inverses.
        let (Some(d), Some(inverse)) = (e.modinv(&(&p1 * &q1)), q.modinv(&p)) else { continue };
        let n = &p * &q;
        let parts = [&BigUint::ZERO, &n, &e, &d, &p, &q, &(&d % &p1), &(&d % &q1), &inverse];
        return Ok(der::seq(&parts.map(integer).each_ref().map(Vec::as_slice)));
    }
}

fn integer(number: &BigUint) -> Vec<u8> {
    let mut bytes = number.to_bytes_be();
    if bytes[0] & 0x80 != 0 {
        bytes.insert(0, 0);
    }
    der::tlv(0x02, &bytes)
}

fn random(bytes: usize) -> Result<Vec<u8>> {
    let mut all = vec![0; bytes];
    SystemRandom::new().fill(&mut all).map_err(|_| Error::Key("the system gives no randomness".into()))?;
    Ok(all)
}

/// A random prime of exactly so many bits, whose two highest are set: the product of two such is twice as long.
fn prime(bits: u64, small: &[u32]) -> Result<BigUint> {
    loop {
        let mut bytes = random(bits as usize / 8)?;
        bytes[0] |= 0xc0;
        if let Some(last) = bytes.last_mut() {
            *last |= 1;
        }
        let candidate = BigUint::from_bytes_be(&bytes);
        let divisible = |by: &u32| &candidate % *by == BigUint::ZERO;
        if !small.iter().any(divisible) && &candidate % EXPONENT != BigUint::from(1u32) && is_prime(&candidate)? {
            return Ok(candidate);
        }
    }
}

/// The odd primes below 2,000, which sort out most candidates cheaply.
fn small_primes() -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    for n in (3..2000).step_by(2) {
        if all.iter().all(|p| n % p != 0) {
            all.push(n);
        }
    }
    all
}

/// Miller and Rabin's test of an odd number above 4.
fn is_prime(n: &BigUint) -> Result<bool> {
    let one = BigUint::from(1u32);
    let last = n - &one;
    let twos = last.trailing_zeros().unwrap_or(0);
    let odd = &last >> twos;
    'rounds: for _ in 0..ROUNDS {
        // Of 2 … n-2; eight bytes more than n has make each nearly as likely.
        let base = BigUint::from_bytes_be(&random(n.bits().div_ceil(8) as usize + 8)?) % (n - 3u32) + 2u32;
        let mut power = base.modpow(&odd, n);
        if power == one || power == last {
            continue;
        }
        for _ in 1..twos {
            power = &power * &power % n;
            if power == last {
                continue 'rounds;
            }
        }
        return Ok(false);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_composites() {
        let number = |text: &str| text.parse::<BigUint>().unwrap();
        // 2^127 - 1, 2^521 - 1, and the primes around 10^9
        let mersenne = |n: u32| (BigUint::from(1u32) << n) - 1u32;
        for prime in [mersenne(127), mersenne(521), number("1000000007"), number("5"), number("7")] {
            assert!(is_prime(&prime).unwrap(), "{prime}");
        }
        // Carmichael numbers, a square, Mersenne's composite, a product of two near primes
        for composite in [number("561"), number("41041"), number("825265"), number("321197185"), number("1000014000049"), mersenne(67), &mersenne(127) * &mersenne(107)] {
            assert!(!is_prime(&composite).unwrap(), "{composite}");
        }
        assert_eq!((small_primes().len(), small_primes().last()), (302, Some(&1999)));
    }

    #[test]
    fn a_prime_has_its_length() {
        for bits in [256, 512] {
            let prime = prime(bits, &small_primes()).unwrap();
            assert!(prime.bits() == bits && prime.bit(bits - 2) && is_prime(&prime).unwrap());
        }
    }
}
