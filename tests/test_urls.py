from ganflow.urls import public


def test_public_takes_credentials_out() -> None:
    assert public("at http://me:s3cret@host:5000/x and ftp://a/b") == "at http://host:5000/x and ftp://a/b"
