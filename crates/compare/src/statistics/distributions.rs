//! Tails of Student's t and the normal distribution.

/// The probability that Student's t exceeds `value`, which is not negative.
pub(super) fn t_tail(value: f64, freedom: f64) -> f64 {
    let x = freedom / (freedom + value * value);
    incomplete_beta(freedom / 2.0, 0.5, x) / 2.0
}

/// The value that Student's t exceeds with probability `1 - share`; `share` is 0.5 or more.
pub(super) fn t_quantile(share: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while t_tail(high, freedom) > 1.0 - share {
        high *= 2.0;
    }
    // Until the two are neighbors among the numbers there are.
    loop {
        let middle = (low + high) / 2.0;
        if middle <= low || middle >= high {
            return middle;
        }
        match t_tail(middle, freedom) > 1.0 - share {
            true => low = middle,
            false => high = middle,
        }
    }
}

/// The probability that a standard normal variable exceeds `value`, which is not negative.
pub(super) fn normal_tail(value: f64) -> f64 {
    // erfc(x) = Q(1/2, x²), the upper incomplete gamma function.
    let x = value * value / 2.0;
    match x == 0.0 {
        true => 0.5,
        false => upper_gamma(0.5, x) / 2.0,
    }
}

/// The regularized upper incomplete gamma function Q(a, x) (Press et al., Numerical Recipes, 6.2).
fn upper_gamma(a: f64, x: f64) -> f64 {
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut denominator) = (1.0 / a, 1.0 / a, a);
        for _ in 0..1000 {
            denominator += 1.0;
            term *= x / denominator;
            sum += term;
            if term < sum * f64::EPSILON {
                break;
            }
        }
        return 1.0 - front * sum;
    }
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / f64::MIN_POSITIVE;
    let mut d = 1.0 / b;
    let mut fraction = d;
    for step in 1..1000 {
        let n = f64::from(step);
        let factor = -n * (n - a);
        b += 2.0;
        d = 1.0 / nonzero(factor * d + b);
        c = nonzero(b + factor / c);
        fraction *= d * c;
        if (d * c - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    front * fraction
}

/// The regularized incomplete beta function I_x(a, b) by its continued fraction (Press et al.,
/// Numerical Recipes, 6.4).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p();
    match x < (a + 1.0) / (a + b + 2.0) {
        true => front.exp() * beta_fraction(a, b, x) / a,
        false => 1.0 - front.exp() * beta_fraction(b, a, 1.0 - x) / b,
    }
}

fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    let mut c = 1.0;
    let mut d = 1.0 / nonzero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for step in 1..1000 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for factor in [even, odd] {
            d = 1.0 / nonzero(1.0 + factor * d);
            c = nonzero(1.0 + factor / c);
            fraction *= d * c;
        }
        if (fraction - before).abs() <= f64::EPSILON * fraction.abs() {
            break;
        }
    }
    fraction
}

fn nonzero(value: f64) -> f64 {
    if value == 0.0 {
        f64::MIN_POSITIVE
    } else {
        value
    }
}

/// The logarithm of the gamma function of a positive number (Lanczos, g = 7).
fn ln_gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let sine = (std::f64::consts::PI * x).sin();
        return (std::f64::consts::PI / sine).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let series = COEFFICIENTS.iter().enumerate().skip(1);
    let series = series.map(|(at, coefficient)| coefficient / (x + at as f64));
    let sum = COEFFICIENTS[0] + series.sum::<f64>();
    let shifted = x + 7.5;
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * shifted.ln() - shifted + sum.ln()
}
