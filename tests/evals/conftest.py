"""Endpoints are closed after every test that made some."""

import pytest

import endpoints


@pytest.fixture(autouse=True)
def _closed():
    yield
    endpoints.close_all()
